//! `cargo xtask oracle`: the walker against hardware models.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};
use comfy_table::{CellAlignment, Table, presets};
use slat_oracle::contract::Info;
use slat_oracle::deviations::{self, Seen};
use slat_oracle::engine::{self, Oracle, Tally, Variant};
use slat_oracle::golden::Writer;
use slat_oracle::oracles;
use slat_oracle::probe::{Case, PassedOver};
use slat_oracle::report::report;
use slat_oracle::versus;

/// Compares the walker with every hardware model that this machine can run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this second stage: ept, npt, stage2, stage2-v7 or gstage; or kvm, for stage 1 alone
    #[arg(long)]
    format: Option<String>,
    /// Probes per oracle
    #[arg(long, default_value_t = 100_000)]
    probes: u64,
    /// Seed of the probes (random, and printed, where it is not given)
    #[arg(long)]
    seed: Option<u64>,
    /// Fail where an emulator or an assembler is missing, rather than ask the others alone
    #[arg(long)]
    require_all: bool,
    /// Also print one probe for each deviation that explained some
    #[arg(long)]
    masked: bool,
    /// Write docs/deviations.md, and keep the answers as the golden vectors that
    /// `cargo test -p slat-oracle` replays (with `--probes 0` the document alone)
    #[arg(long)]
    bless: bool,
}

fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds its hashers from the system's randomness.
    RandomState::new().hash_one(std::process::id()) >> 16
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let seed = args.seed.unwrap_or_else(random_seed);
    let found = oracles::find();
    for missing in &found.missing {
        anstream::eprintln!("skipped: {missing} (run `cargo xtask emulators`)");
    }
    let wanted = |format: &str| args.format.as_deref().is_none_or(|name| name == format);
    let chosen: Vec<_> = found.oracles.iter().filter(|o| wanted(o.format)).collect();
    let kvm = if wanted("kvm") && !args.bless { kvm_ways() } else { vec![] };
    // A machine may have no KVM; emulators can be had everywhere.
    ensure!(
        !args.require_all || found.missing.is_empty(),
        "{} oracles are missing (run `cargo xtask emulators`): {}",
        found.missing.len(),
        found.missing.join("; ")
    );
    ensure!(
        !chosen.is_empty() || !kvm.is_empty() || args.format.is_none(),
        "no oracle here for the format {}",
        args.format.unwrap_or_default()
    );
    anstream::println!("seed {seed}");
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "format",
        "oracle",
        "probes",
        "agree",
        "masked",
        "disagree",
        "not asked",
        "seconds",
    ]);
    if args.bless {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/deviations.md");
        std::fs::create_dir_all(path.with_file_name(""))?;
        std::fs::write(&path, deviations::document())
            .with_context(|| format!("cannot write {}", path.display()))?;
        if args.probes == 0 {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let mut tasks: Vec<Task<'_>> = chosen.iter().map(|oracle| Task::Ask(oracle)).collect();
    if !args.bless && wanted("npt") {
        tasks.extend(versus::pairs(&found.oracles).into_iter().map(Task::Compare));
    }
    tasks.extend(kvm.into_iter().map(Task::Kvm));
    let mut all = Tally::default();
    for (task, (sum, seconds)) in tasks.iter().zip(run_all(&tasks, &args, seed)?) {
        let (format, name) = task.names();
        table.add_row([
            format,
            name,
            sum.probes.to_string(),
            sum.agree.to_string(),
            sum.masked_total().to_string(),
            sum.disagree.to_string(),
            sum.passed_over.values().sum::<u64>().to_string(),
            format!("{seconds:.1}"),
        ]);
        all.add(sum);
    }
    for column in 2..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    anstream::println!("{table}");
    for (name, count) in &all.masked {
        anstream::println!("masked by {name}: {count}");
    }
    for (reason, count) in &all.passed_over {
        anstream::println!("not asked, {}: {count}", reason.why());
    }
    // The images that the printed command lines walk.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("oracle");
    if args.masked {
        for (name, example) in &all.examples {
            let file = format!("{}.elf", name.replace(" + ", "+"));
            let told = report(all.masked[name], example, &folder, &file)?;
            anstream::println!("\n{name}, for example{told}");
        }
    }
    for (i, (count, disagreement)) in all.disagreements.iter().enumerate() {
        let told = report(*count, disagreement, &folder, &format!("{seed}-{i}.elf"))?;
        anstream::println!("{told}");
    }
    // Every register that a generator makes is one that its manual allows.
    let refused = all.passed_over.contains_key(&PassedOver::Registers);
    Ok(ExitCode::from(u8::from(all.disagree > 0 || refused)))
}

/// The ways of asking this machine's KVM; none, and why not, where it makes no machine.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn kvm_ways() -> Vec<Way> {
    match kvm::there() {
        Ok(()) => Way::ALL.to_vec(),
        Err(why) => {
            anstream::eprintln!("skipped: KVM: {why}");
            vec![]
        }
    }
}

/// As above, where no KVM is of the architecture that is asked.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn kvm_ways() -> Vec<Way> {
    anstream::eprintln!("skipped: KVM: it is asked on Linux on x86-64 only");
    vec![]
}

/// Asks KVM, and says which modes it does not have.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn ask_kvm(way: Way, probes: u64, seed: u64) -> anyhow::Result<Tally> {
    // Nothing ends a guest that does not come back, but the end of this process.
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Where patience has ended, nobody receives it.
        let _ = send.send(kvm::ask(way, probes, seed));
    });
    let patience = KVM_PATIENCE + std::time::Duration::from_millis(probes);
    let asked = receive
        .recv_timeout(patience)
        .with_context(|| format!("{}: no answer within {} s", way.name(), patience.as_secs()))??;
    for mode in &asked.skipped {
        anstream::eprintln!("skipped: {}: {mode}", way.name());
    }
    Ok(asked.tally)
}

/// How long KVM may take, beside a millisecond a probe: many times what it needs.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const KVM_PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
use slat_oracle::kvm::{self, Way};

/// There is no way.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[derive(Clone, Copy)]
enum Way {}

/// One row of the table.
enum Task<'a> {
    /// The walker against a model.
    Ask(&'a Oracle),
    /// Two models against each other.
    Compare((&'a Oracle, &'a Variant, &'a Oracle, &'a Variant)),
    /// The walker of stage 1 against KVM.
    Kvm(Way),
}

impl Task<'_> {
    fn names(&self) -> (String, String) {
        match self {
            Task::Ask(oracle) => (oracle.format.to_owned(), oracle.name.clone()),
            Task::Compare((a, one, b, _)) => {
                let host = if one.mode == 2 { " (PAE host)" } else { "" };
                (format!("npt{host}"), format!("{} against {}", a.name, b.name))
            }
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Task::Kvm(way) => ("x86".to_owned(), way.name().to_owned()),
            #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
            Task::Kvm(way) => match *way {},
        }
    }

    fn run(&self, args: &Args, seed: u64) -> anyhow::Result<Tally> {
        match self {
            Task::Ask(oracle) => ask(oracle, args, seed),
            Task::Compare(pair) => versus::compare(*pair, args.probes.div_ceil(10), seed),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Task::Kvm(way) => ask_kvm(*way, args.probes, seed),
            #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
            Task::Kvm(way) => match *way {},
        }
    }
}

/// Where a task leaves what came of it, with its seconds.
type Slot = Mutex<Option<anyhow::Result<(Tally, f64)>>>;

/// Runs the tasks, as many at once as there are processors, and returns what came of each with its
/// seconds.
fn run_all(tasks: &[Task<'_>], args: &Args, seed: u64) -> anyhow::Result<Vec<(Tally, f64)>> {
    let next = AtomicUsize::new(0);
    let results: Vec<Slot> = tasks.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let (Some(task), Some(slot)) = (tasks.get(place), results.get(place)) else { return };
            let start = std::time::Instant::now();
            let result = task.run(args, seed);
            let seconds = start.elapsed().as_secs_f64();
            let (format, name) = task.names();
            anstream::eprintln!("{format}, {name}: done in {seconds:.0} s");
            *slot.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(result.map(|tally| (tally, seconds)));
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    results
        .into_iter()
        .map(|slot| {
            let result = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
            result.context("a task was not run")?
        })
        .collect()
}

/// Asks an oracle's variants; blesses the answers where that was wanted.
fn ask(oracle: &Oracle, args: &Args, seed: u64) -> anyhow::Result<Tally> {
    let shares: u64 = oracle.variants.iter().map(|variant| variant.share).sum();
    let mut sum = Tally::default();
    for (i, variant) in oracle.variants.iter().enumerate() {
        let probes = (args.probes * variant.share).div_ceil(shares);
        let seed = variant.seed(oracle.model, seed);
        let writer = std::cell::RefCell::new(None);
        let mut begin = |variant: &Variant, info: &Info| {
            if args.bless {
                *writer.borrow_mut() = Some(Writer::new(variant.recipe, oracle.model, info, seed));
            }
        };
        let mut keep = |draft, case: &Case, seen: &Seen| {
            if let Some(writer) = writer.borrow_mut().as_mut() {
                writer.add(draft, case, seen);
            }
        };
        let asked = engine::ask(oracle, variant, probes, seed, &mut begin, &mut keep)?;
        if let Some(writer) = writer.into_inner()
            && asked.disagree == 0
        {
            bless(oracle.format, &oracle.name, &variant.name, i, &writer.finish()?)?;
        }
        sum.add(asked);
    }
    Ok(sum)
}

/// Writes a file of golden vectors, whole or not at all.
fn bless(
    format: &str,
    oracle: &str,
    variant: &str,
    index: usize,
    bytes: &[u8],
) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/golden");
    std::fs::create_dir_all(&folder)?;
    // "QEMU 7.2.22" is qemu7 here.
    let model = oracle.split('.').next().unwrap_or(oracle).replace(' ', "").to_lowercase();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let variant: String = variant.chars().map(plain).collect();
    let name = format!("{format}-{model}-{index}-{variant}.zst");
    let mut file = tempfile::NamedTempFile::new_in(&folder)?;
    file.write_all(bytes)?;
    file.persist(folder.join(name))?;
    Ok(())
}

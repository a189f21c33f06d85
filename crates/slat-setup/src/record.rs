//! One recording: a guest is booted in QEMU with the recorder, from the program to be recorded to a
//! finished file.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::initrd::Initrd;
use crate::{
    Arch, Cache, Error, Qemu, Result, busybox, find_or_build_recorder, find_or_fetch_qemu10, io,
    kernel, marker,
};

/// What the guest is.
#[derive(Clone, Debug)]
pub enum Guest {
    /// A minimal Linux that runs one command and powers off; the recording is from the command's
    /// start to its end.
    Command {
        /// The command and its arguments, as seen in the guest.
        words: Vec<String>,
        /// What is put into the guest: files and folders of this machine, and their places there.
        files: Vec<(PathBuf, String)>,
        /// Shell lines to run before the recording begins.
        before: String,
        /// Whether the command executes the markers itself, for a recording of a part of it.
        marks: bool,
    },
    /// A system of the user's own, which executes the markers itself.
    Own {
        /// The kernel image.
        kernel: PathBuf,
        /// Its initial RAM disk.
        initrd: Option<PathBuf>,
    },
}

/// How far the recorder goes, to measure what each part of it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Stage {
    /// Nothing is instrumented.
    Bare,
    /// The callbacks return at once.
    Callback,
    /// The physical address of each access is asked for.
    Address,
    /// All is encoded and thrown away.
    Encode,
    /// A recording is made.
    #[default]
    Full,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Callback => "callback",
            Self::Address => "address",
            Self::Encode => "encode",
            Self::Full => "full",
        }
    }
}

/// All that decides what a recording will be.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The guest's architecture: x86-64 or AArch64.
    pub arch: Arch,
    /// What runs.
    pub guest: Guest,
    /// The guest's memory in MiB; at most 2048 for x86-64, whose memory above that lies elsewhere.
    pub memory: u32,
    /// The number of vCPUs, 1 to 64.
    pub vcpus: u8,
    /// QEMU's name of the processor model; None for a plain one of the architecture.
    pub cpu: Option<String>,
    /// Words to append to the kernel's command line.
    pub append: String,
    /// The seed of everything random in the machine.
    pub seed: u64,
    /// After so many accesses the recording ends.
    pub most_accesses: Option<u64>,
    /// After so many accesses a block of the file ends; None for the default.
    pub block_accesses: Option<u64>,
    /// The level of compression, 1 to 19.
    pub level: i32,
    /// The command to be named in the provenance.
    pub command: String,
    /// How far the recorder goes.
    pub stage: Stage,
}

impl Recipe {
    /// A recipe for a command in a minimal Linux of `arch`: 512 MiB, one vCPU, seed 1.
    #[must_use]
    pub fn new(arch: Arch, guest: Guest) -> Self {
        Self {
            arch,
            guest,
            memory: 512,
            vcpus: 1,
            cpu: None,
            append: String::new(),
            seed: 1,
            most_accesses: None,
            block_accesses: None,
            level: 3,
            command: String::new(),
            stage: Stage::Full,
        }
    }
}

/// How far a running recording is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Accesses in the file; 0 while the guest boots.
    pub accesses: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// What the guest wrote to its console since the last call.
    pub console: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// Why the recording ended: `marker`, `limit` or `exit`.
    pub reason: String,
    /// Loads, stores and block fetches.
    pub accesses: u64,
    /// Instructions.
    pub instructions: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// CPU seconds of the thread that ran the guest, from the first marker to the last.
    pub cpu_seconds: f64,
    /// The exit status of the command in the guest, if it ended.
    pub status: Option<i32>,
}

const ENDED: &str = "slat: the command ended with ";

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn build_initrd(
    cache: &Cache,
    arch: Arch,
    words: &[String],
    files: &[(PathBuf, String)],
    before: &str,
    marks: bool,
) -> Result<Vec<u8>> {
    let mut initrd = Initrd::new();
    let shell = fs::read(busybox(cache, arch)?).map_err(io("busybox"))?;
    initrd.file("/bin/busybox", &shell);
    for folder in ["/proc", "/sys", "/dev", "/tmp", "/guest"] {
        initrd.folder(folder);
    }
    initrd.file("/slat/begin", &marker::program(arch, true));
    initrd.file("/slat/end", &marker::program(arch, false));
    for (from, to) in files {
        initrd.copy(from, to)?;
    }
    let command = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    let (begin, end) = if marks { ("", "") } else { ("/slat/begin", "/slat/end") };
    let init = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
         echo 1 > /proc/sys/kernel/printk\n\
         export PATH=/bin:/usr/bin:/guest HOME=/guest\n\
         cd /guest\n\
         {before}\n\
         {begin}\n\
         {command}\n\
         status=$?\n\
         {end}\n\
         echo \"{ENDED}$status\"\n\
         poweroff -f\n"
    );
    initrd.file("/init", init.as_bytes());
    Ok(initrd.finish())
}

/// A file in memory, if the system has such a place, that goes away with this value.
fn guest_memory() -> Result<tempfile::TempPath> {
    let shared = Path::new("/dev/shm");
    let folder = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    let file = tempfile::Builder::new().prefix("slat-guest-").tempfile_in(&folder);
    file.map(tempfile::NamedTempFile::into_temp_path).map_err(io(folder))
}

fn provenance(recipe: &Recipe, qemu: &Qemu, kernel: &str) -> String {
    let one_line = |text: &str| text.replace('\n', " ");
    let model = recipe.cpu.as_deref().unwrap_or(plain_cpu(recipe.arch));
    format!(
        "command={}\nemulator=QEMU {}\nkernel={}\ncpu={model}\nmemory={} MiB\nseed={}\nappend={}\n",
        one_line(&recipe.command),
        qemu.version,
        one_line(kernel),
        recipe.memory,
        recipe.seed,
        one_line(&recipe.append),
    )
}

fn plain_cpu(arch: Arch) -> &'static str {
    match arch {
        Arch::Aarch64 => "cortex-a72",
        _ => "qemu64",
    }
}

/// Makes a recording at `output`, written beside it first and renamed when it is whole.
///
/// `watch` is called a few times a second; when it returns false, the guest is stopped, and what was
/// recorded until then is kept.
///
/// # Errors
///
/// Where something needed is missing, the guest cannot be started, or it ends without a recording.
pub fn record(
    cache: &Cache,
    recipe: &Recipe,
    output: &Path,
    mut watch: impl FnMut(&Progress) -> bool,
) -> Result<Outcome> {
    let recorder = find_or_build_recorder()?;
    let qemu = find_or_fetch_qemu10(cache, recipe.arch)?;
    let place = tempfile::tempdir().map_err(io(std::env::temp_dir()))?;
    let at = |name: &str| place.path().join(name);
    let (image, initrd, version) = match &recipe.guest {
        Guest::Own { kernel, initrd } => {
            (kernel.clone(), initrd.clone(), kernel.display().to_string())
        }
        Guest::Command { words, files, before, marks } => {
            let kernel = kernel(cache, recipe.arch)?;
            let bytes = build_initrd(cache, recipe.arch, words, files, before, *marks)?;
            let path = at("initrd");
            fs::write(&path, bytes).map_err(io(&path))?;
            (kernel.image, Some(path), kernel.version)
        }
    };
    let folder = match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new().prefix(".slat-").tempfile_in(folder).map_err(io(folder))?;
    let (provenance_file, progress, report) = (at("provenance"), at("progress"), at("report"));
    fs::write(&provenance_file, provenance(recipe, &qemu, &version)).map_err(io(place.path()))?;
    let memory = guest_memory()?;
    let console = at("console");
    let mut command = qemu.command();
    let machine = Machine {
        recipe,
        image: &image,
        initrd: initrd.as_deref(),
        memory: &memory,
        console: &console,
    };
    machine.describe(&mut command);
    let mut plugin = format!(
        "{},out={},ram={},provenance={},progress={},report={},level={},stage={}",
        recorder.display(),
        file.path().display(),
        memory.display(),
        provenance_file.display(),
        progress.display(),
        report.display(),
        recipe.level,
        recipe.stage.name(),
    );
    for (name, value) in
        [("max-accesses", recipe.most_accesses), ("block-accesses", recipe.block_accesses)]
    {
        if let Some(value) = value {
            plugin.push_str(&format!(",{name}={value}"));
        }
    }
    command.arg("-plugin").arg(plugin);
    let errors = at("errors");
    let errors_file = fs::File::create(&errors).map_err(io(&errors))?;
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(errors_file);
    let mut child = Running(command.spawn().map_err(|source| Error::Run {
        program: qemu.binary.display().to_string(),
        source,
        remedy: "run `slat record --setup`".into(),
    })?);
    let mut tail = Tail::new(&console);
    let mut all = String::new();
    let status = loop {
        let ended = child.0.try_wait().map_err(io(&qemu.binary))?;
        let text = tail.read();
        all.push_str(&text);
        let line = fs::read_to_string(&progress).unwrap_or_default();
        let mut words = line.lines().last().unwrap_or("").split(' ').map(str::parse::<u64>);
        let mut next = || words.next().and_then(std::result::Result::ok).unwrap_or(0);
        let progress = Progress { accesses: next(), bytes: next(), console: text };
        let go_on = watch(&progress);
        if let Some(status) = ended {
            break status;
        }
        if !go_on {
            child.quit();
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let failed = |what: String| Error::Failed { command: "the guest's run".into(), output: what };
    let Ok(text) = fs::read_to_string(&report) else {
        let said = fs::read_to_string(&errors).unwrap_or_default();
        let console: Vec<&str> = all.lines().rev().take(5).collect();
        let console = console.into_iter().rev().collect::<Vec<_>>().join("\n");
        return Err(failed(format!(
            "QEMU ended ({status}) before the guest began to record. QEMU said: {}\nThe guest's \
             console ends with:\n{console}",
            said.trim()
        )));
    };
    let mut outcome = parse_report(text.trim()).map_err(failed)?;
    outcome.status = all
        .lines()
        .find_map(|line| line.split(ENDED).nth(1))
        .and_then(|number| number.trim().parse().ok());
    if recipe.stage == Stage::Full {
        // A temporary file is for its owner alone; a recording is a file like others.
        open_to_others(file.path())?;
        file.persist(output)
            .map_err(|error| Error::Io { path: output.into(), source: error.error })?;
    }
    Ok(outcome)
}

#[cfg(unix)]
fn open_to_others(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(io(path))
}

#[cfg(not(unix))]
fn open_to_others(_: &Path) -> Result<()> {
    Ok(())
}

fn parse_report(line: &str) -> std::result::Result<Outcome, String> {
    let Some(rest) = line.strip_prefix("done ") else {
        return Err(line.strip_prefix("error ").unwrap_or(line).to_owned());
    };
    let mut outcome = Outcome::default();
    for word in rest.split(' ') {
        match word.split_once('=') {
            None => outcome.reason = word.into(),
            Some(("accesses", value)) => outcome.accesses = value.parse().unwrap_or(0),
            Some(("instructions", value)) => outcome.instructions = value.parse().unwrap_or(0),
            Some(("bytes", value)) => outcome.bytes = value.parse().unwrap_or(0),
            Some(("cpu", value)) => outcome.cpu_seconds = value.parse().unwrap_or(0.0),
            Some(_) => {}
        }
    }
    Ok(outcome)
}

/// What QEMU is told to be.
struct Machine<'a> {
    recipe: &'a Recipe,
    image: &'a Path,
    initrd: Option<&'a Path>,
    memory: &'a Path,
    console: &'a Path,
}

impl Machine<'_> {
    fn describe(&self, command: &mut Command) {
        let Recipe { arch, memory, vcpus, cpu, append, seed, .. } = self.recipe;
        let (machine, terminal) = match arch {
            Arch::Aarch64 => ("virt", "ttyAMA0"),
            _ => ("pc", "ttyS0"),
        };
        // One thread for all vCPUs, time from the instructions alone, everything random from the
        // seed: the same input gives the same recording, byte for byte.
        command.args(["-accel", "tcg,thread=single", "-icount", "shift=2,sleep=off"]);
        command.args(["-seed", &seed.to_string(), "-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
        command.args(["-smp", &vcpus.to_string(), "-m", &format!("{memory}M")]);
        command.args(["-cpu", cpu.as_deref().unwrap_or(plain_cpu(*arch))]);
        let backend = format!(
            "memory-backend-file,id=ram,size={memory}M,mem-path={},share=on",
            self.memory.display()
        );
        command.args(["-object", &backend, "-machine", &format!("{machine},memory-backend=ram")]);
        command.arg("-kernel").arg(self.image);
        if let Some(initrd) = self.initrd {
            command.arg("-initrd").arg(initrd);
        }
        let line = format!("console={terminal} nokaslr quiet panic=-1 {append}");
        command.args(["-append", line.trim_end()]);
        command.args(["-display", "none", "-nodefaults", "-no-reboot", "-monitor", "none"]);
        command.arg("-serial").arg(format!("file:{}", self.console.display()));
        // QEMU is asked to end through this, so that the recorder can close its file.
        command.args(["-qmp", "stdio"]);
    }
}

/// QEMU, which is ended with this value.
struct Running(Child);

impl Running {
    fn quit(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            // If it is ending already, there is nobody to hear it.
            let _ = input.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}\n");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// What is appended to a file.
struct Tail {
    path: PathBuf,
    read: u64,
}

impl Tail {
    fn new(path: &Path) -> Self {
        Self { path: path.into(), read: 0 }
    }

    fn read(&mut self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = fs::File::open(&self.path)
            && file.seek(SeekFrom::Start(self.read)).is_ok()
            && file.read_to_end(&mut bytes).is_ok()
        {
            self.read += bytes.len() as u64;
        }
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_shell_as_they_are() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn reports_are_read_and_errors_passed_on() {
        let line = "done marker accesses=5 instructions=7 bytes=9 cpu=0.250 seconds=1.0";
        let outcome = parse_report(line).unwrap();
        assert_eq!((outcome.accesses, outcome.instructions, outcome.bytes), (5, 7, 9));
        assert_eq!((outcome.reason.as_str(), outcome.cpu_seconds), ("marker", 0.25));
        assert_eq!(parse_report("error no room").unwrap_err(), "no room");
    }

    #[test]
    fn a_tail_gives_each_part_once() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("console");
        let mut tail = Tail::new(&path);
        assert_eq!(tail.read(), "");
        fs::write(&path, "one\r\n").unwrap();
        assert_eq!(tail.read(), "one\n");
        fs::write(&path, "one\r\ntwo").unwrap();
        assert_eq!(tail.read(), "two");
        assert_eq!(tail.read(), "");
    }
}

//! One recording: a guest is booted in QEMU with the recorder, from the program to be recorded to a
//! finished file.

mod machine;
mod recipe;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use self::machine::{Machine, Running, Tail, cpu, guest_memory, option_value};
pub use self::recipe::{Guest, Recipe, Stage};
use crate::initrd::Initrd;
use crate::{Arch, Cache, Error, Kit, Linux, Qemu, Result, busybox, io, marker};

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
    /// CPU seconds of the thread that encoded.
    pub encode_seconds: f64,
    /// CPU seconds of the thread that compressed and wrote.
    pub compress_seconds: f64,
    /// The exit status of the command in the guest, if it ended.
    pub status: Option<i32>,
}

const ENDED: &str = "slat: the command ended with ";

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn build_initrd(
    busybox: &Path,
    arch: Arch,
    words: &[String],
    files: &[(PathBuf, String)],
    before: &str,
    marks: bool,
) -> Result<Vec<u8>> {
    let mut initrd = Initrd::new();
    let shell = fs::read(busybox).map_err(io(busybox))?;
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

/// The initial RAM disk of a guest that runs a command: all that is in the guest but its kernel. None
/// for a guest of the user's own.
///
/// # Errors
///
/// Where busybox is missing or a file of the recipe cannot be read.
pub fn guest_image(cache: &Cache, recipe: &Recipe) -> Result<Option<Vec<u8>>> {
    let Guest::Command { words, files, before, marks } = &recipe.guest else { return Ok(None) };
    let busybox = busybox(cache, recipe.arch)?;
    build_initrd(&busybox, recipe.arch, words, files, before, *marks).map(Some)
}

fn provenance(recipe: &Recipe, qemu: &Qemu, kernel: &str) -> String {
    let one_line = |text: &str| text.replace('\n', " ");
    let model = cpu(recipe);
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

/// Makes a recording at `output`, written beside it first and renamed when it is whole.
///
/// `watch` is called a few times a second; when it returns false, the guest is stopped, and what was
/// recorded until then is kept.
///
/// # Errors
///
/// [`Error::NotSetUp`] where something needed is missing; where the guest cannot be started, or it ends without a recording.
pub fn record(
    cache: &Cache,
    recipe: &Recipe,
    output: &Path,
    mut watch: impl FnMut(&Progress) -> bool,
) -> Result<Outcome> {
    let in_linux = matches!(recipe.guest, Guest::Command { .. });
    let Kit { qemu, recorder, linux } = Kit::find(cache, recipe.arch, in_linux)?;
    let place = tempfile::tempdir().map_err(io(std::env::temp_dir()))?;
    let at = |name: &str| place.path().join(name);
    let (image, initrd, version) = match (&recipe.guest, linux) {
        (Guest::Own { kernel, initrd }, _) => {
            for file in std::iter::once(kernel).chain(initrd) {
                fs::File::open(file).map_err(io(file))?;
            }
            // The name alone: where a file lies on this machine is nobody else's business.
            let name = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (kernel.clone(), initrd.clone(), name)
        }
        (Guest::Command { words, files, before, marks }, Some(Linux { kernel, busybox })) => {
            let bytes = build_initrd(&busybox, recipe.arch, words, files, before, *marks)?;
            let path = at("initrd");
            fs::write(&path, bytes).map_err(io(&path))?;
            (kernel.image, Some(path), kernel.version)
        }
        (Guest::Command { .. }, None) => unreachable!("the kit was to have a Linux"),
    };
    let folder = match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::metadata(folder).map_err(io(folder))?;
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
        option_value(&recorder),
        option_value(file.path()),
        option_value(&memory),
        option_value(&provenance_file),
        option_value(&progress),
        option_value(&report),
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
    let mut child = Running(command.spawn().map_err(|error| Error::Run {
        program: qemu.binary.display().to_string(),
        error,
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
        let said = if said.trim().is_empty() { "nothing" } else { said.trim() };
        let marker = if in_linux { "" } else { " It has to execute the marker, see --help." };
        let console = match console.trim() {
            "" => "The guest wrote nothing to its console.".to_owned(),
            text => format!("The guest's console ends with:\n{text}"),
        };
        return Err(failed(format!(
            "QEMU ended ({status}) before the guest began to record.{marker} QEMU said: {said}\n{console}"
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
            .map_err(|error| Error::Io { path: output.into(), error: error.error })?;
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
            Some(("encode", value)) => outcome.encode_seconds = value.parse().unwrap_or(0.0),
            Some(("compress", value)) => outcome.compress_seconds = value.parse().unwrap_or(0.0),
            Some(_) => {}
        }
    }
    Ok(outcome)
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
}

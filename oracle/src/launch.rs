//! Running a job on an emulator.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::contract::{Answer, HEADER, Info, Job, Machine};
use crate::monitor::Monitor;

/// How long a machine may go without beginning another command before it counts as hung, and how
/// long one may take altogether that does not show its progress. Either takes a second where nothing
/// else runs; a loaded machine gets a lot more.
const PATIENCE: Duration = Duration::from_secs(40);
const WHOLE: Duration = Duration::from_secs(300);

/// How an emulator is started.
#[derive(Clone, Debug)]
pub enum Launcher {
    /// QEMU: the RAM is a file that both sides have mapped.
    Qemu {
        /// The emulator.
        emulator: slat_setup::Qemu,
        /// Machine options (after `-M`).
        machine: &'static str,
        /// The processor (after `-cpu`).
        cpu: String,
    },
    /// Bochs: the image is a disk.
    Bochs {
        /// The emulator.
        program: PathBuf,
        /// The processor model.
        model: String,
    },
}

/// A monitor on an emulator, ready to run jobs.
#[derive(Debug)]
pub struct Station {
    launcher: Launcher,
    folder: tempfile::TempDir,
    monitor: Monitor,
    binary: Vec<u8>,
}

/// What one launch brought back.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the monitor found.
    pub info: Info,
    /// One answer for each command, or for those before the command at which the machine hung.
    pub answers: Vec<Answer>,
}

impl Station {
    /// Assembles the monitor and makes a place to run it in.
    ///
    /// # Errors
    /// Where the assembler is missing or there is no place for temporary files.
    pub fn new(launcher: Launcher, monitor: Monitor) -> anyhow::Result<Self> {
        // Memory is the better place for a RAM file, where there is such a place.
        let memory = Path::new("/dev/shm");
        let builder = tempfile::Builder::new();
        let folder = if memory.is_dir() {
            builder.tempdir_in(memory).or_else(|_| builder.tempdir())
        } else {
            builder.tempdir()
        };
        let folder = folder.context("cannot make a temporary folder")?;
        let binary = monitor.assemble(folder.path())?;
        Ok(Station { launcher, folder, monitor, binary })
    }

    /// Runs a job.
    ///
    /// # Errors
    /// Where the emulator cannot be started, takes too long, or its monitor does not come to its
    /// end.
    pub fn run(&mut self, job: &Job<'_>) -> anyhow::Result<Report> {
        match self.launcher.clone() {
            Launcher::Qemu { emulator, machine, cpu } => {
                self.run_qemu(job, emulator.command(), machine, &cpu)
            }
            Launcher::Bochs { program, model } => self.run_bochs(job, &program, &model),
        }
    }

    fn run_qemu(
        &mut self,
        job: &Job<'_>,
        mut command: Command,
        machine: &str,
        cpu: &str,
    ) -> anyhow::Result<Report> {
        let ram = self.folder.path().join("ram");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&ram)
            .with_context(|| format!("cannot make {}", ram.display()))?;
        let Machine { ram: range, monitor, .. } = job.machine;
        let bytes = job.machine.ram_bytes();
        file.set_len(bytes)?;
        for segment in job.segments() {
            file.write_all_at(&segment.bytes, segment.address - range.start)?;
        }
        let megabytes = bytes >> 20;
        command.args(["-M", &format!("{machine},memory-backend=m0")]);
        command.arg("-object").arg(format!(
            "memory-backend-file,id=m0,size={megabytes}M,mem-path={},share=on",
            ram.display()
        ));
        command.args(["-m", &format!("{megabytes}M"), "-cpu", cpu, "-accel", "tcg", "-no-reboot"]);
        command.args(["-nodefaults", "-display", "none", "-serial", "none"]);
        match monitor {
            None => {
                let rom = self.folder.path().join("monitor.bin");
                command.arg("-bios").arg(rom);
                command.args(["-device", "isa-debug-exit,iobase=0x501,iosize=1"]);
            }
            Some(address) => {
                file.write_all_at(&self.binary, address - range.start)?;
                if self.monitor == Monitor::Riscv64 {
                    command.args(["-bios", "none"]);
                } else {
                    command.args(["-device", &format!("loader,addr={address:#x},cpu-num=0")]);
                }
            }
        }
        let left = job.machine.header + 0xD8 - range.start;
        let mut word = [0; 8];
        self.wait(command, PATIENCE, &mut || {
            file.read_exact_at(&mut word, left).map_or(0, |()| u64::from_le_bytes(word))
        })?;
        let read = |at: u64, bytes: u64| -> anyhow::Result<Vec<u8>> {
            let mut buffer = vec![0; bytes as usize];
            file.read_exact_at(&mut buffer, at - range.start)?;
            Ok(buffer)
        };
        let header = read(job.machine.header, HEADER)?;
        let answers = job.answers();
        let answers = read(answers.start, answers.end - answers.start)?;
        self.report(job, &header, &answers, true)
    }

    fn run_bochs(&mut self, job: &Job<'_>, bochs: &Path, model: &str) -> anyhow::Result<Report> {
        let folder = self.folder.path();
        let (mut disk, back) = job.disk();
        // A flat disk is whole cylinders of 16 heads and 63 sectors.
        disk.resize(disk.len().next_multiple_of(16 * 63 * 512), 0);
        let image = folder.join("disk");
        std::fs::write(&image, &disk).with_context(|| format!("write {}", image.display()))?;
        let config = format!(
            "config_interface: textconfig\n\
             display_library: term\n\
             cpu: model={model}, count=1, ips=50000000, reset_on_triple_fault=0\n\
             memory: guest={ram}, host={ram}\n\
             romimage: file={folder}/monitor.bin\n\
             vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata0-master: type=disk, path={folder}/disk, mode=flat\n\
             ata1: enabled=0\n\
             boot: disk\n\
             pci: enabled=0\n\
             clock: sync=none, time0=946681200\n\
             log: /dev/null\n\
             panic: action=fatal\n\
             error: action=ignore\n\
             info: action=ignore\n\
             debug: action=ignore\n\
             speaker: enabled=0\n\
             sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n\
             plugin_ctrl: biosdev=0, speaker=0, parallel=0, serial=0, gameport=0, iodebug=0\n\
             floppya: type=none\n",
            ram = job.machine.ram_bytes() >> 20,
            folder = folder.display(),
        );
        std::fs::write(folder.join("bochsrc"), config)?;
        // Debian's build has the debugger, which stops before the first instruction.
        std::fs::write(folder.join("debugger"), "c\nq\n")?;
        let mut command = Command::new(bochs);
        command.env("TERM", "vt100").arg("-q").arg("-f").arg(folder.join("bochsrc"));
        command.arg("-rc").arg(folder.join("debugger"));
        if self.wait(command, WHOLE, &mut || 0)? {
            bail!("{} did not end within {} s", self.name(), WHOLE.as_secs());
        }
        let mut disk = Vec::new();
        File::open(&image)?.read_to_end(&mut disk)?;
        let (header, answers) = (&disk[..HEADER as usize], &disk[back as usize..]);
        self.report(job, header, answers, false)
    }

    fn report(
        &self,
        job: &Job<'_>,
        header: &[u8],
        answers: &[u8],
        shared: bool,
    ) -> anyhow::Result<Report> {
        let (info, answers) = job.read_back(header, answers, shared).with_context(|| {
            let errors = std::fs::read(self.folder.path().join("stderr")).unwrap_or_default();
            let errors = String::from_utf8_lossy(&errors);
            let last = errors.lines().last().unwrap_or("and the emulator says nothing");
            format!("{}: {last}", self.name())
        })?;
        Ok(Report { info, answers })
    }

    fn name(&self) -> String {
        match &self.launcher {
            Launcher::Qemu { emulator, cpu, .. } => format!("QEMU {} {cpu}", emulator.version),
            Launcher::Bochs { model, .. } => format!("Bochs {model}"),
        }
    }

    /// Runs the emulator; whether it had to be stopped, because `progress` stayed the same for too
    /// long.
    fn wait(
        &self,
        mut command: Command,
        patience: Duration,
        progress: &mut dyn FnMut() -> u64,
    ) -> anyhow::Result<bool> {
        let errors = File::create(self.folder.path().join("stderr"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut since = (Instant::now(), progress());
        let mut pause = Duration::from_millis(1);
        while child.try_wait()?.is_none() {
            let now = progress();
            if now != since.1 {
                since = (Instant::now(), now);
            } else if since.0.elapsed() > patience {
                child.kill()?;
                child.wait()?;
                return Ok(true);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Ok(false)
    }
}

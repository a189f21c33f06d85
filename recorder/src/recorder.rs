//! The recorder proper: what each callback of QEMU means for the recording.

use std::collections::HashMap;
use std::ffi::c_void;
use std::time::Instant;

use slat_trace::recording::{Encoder, Provenance};
use slat_trace::{Arch, Control, Event, Machine, Root};

use crate::ffi::{self, thread_cpu};
use crate::guest::{Ram, Registers};
use crate::identity::Identities;
use crate::notes::{Definition, Notes};
use crate::output::Output;
use crate::parameters::{Parameters, Stage};
use crate::shapes::Shapes;
use crate::tables::{Encoding, Tables};
use crate::{aarch64, x86};

/// A special instruction, as its callback gets it.
pub(crate) enum Special {
    X86(x86::Special, iced_x86::Instruction),
    Aarch64(aarch64::Special, u32),
}

impl Special {
    pub(crate) fn always(&self) -> bool {
        match self {
            Self::X86(special, _) => special.always(),
            Self::Aarch64(special, _) => special.always(),
        }
    }
}

/// A translated block, as its callback gets it. Its memory is never freed: QEMU may run it until
/// the end. It is read at each execution, in no order that a processor could foresee: it shall lie
/// in one cache line.
#[repr(align(32))]
pub(crate) struct Block {
    va: u64,
    /// The physical page.
    page: u64,
    /// Its number in the notes.
    number: u32,
    /// The vector, if this is the beginning of a handler.
    handler: Option<u8>,
}

#[derive(Default)]
struct Vcpu {
    /// Whether its initial registers are in the recording.
    begun: bool,
    user: bool,
    /// The privilege may have changed since it was last read.
    check_mode: bool,
    /// The physical page of its last fetch, and the virtual one that it was fetched by.
    page: Option<(u64, u64)>,
    roots: [u64; 3],
}

/// Everything between the two markers.
struct Session {
    ram: Ram,
    notes: Notes,
    shapes: Shapes,
    tables: Tables,
    output: Option<Output>,
    vcpus: Vec<Vcpu>,
    /// The vCPU that runs.
    current: u8,
    identities: Identities,
    began: Instant,
    cpu_at_start: f64,
}

enum Phase {
    /// Only the marker is looked for.
    Waiting,
    /// The marker was met; the next translation begins the session.
    Starting,
    Running(Box<Session>),
    Over,
}

/// What QEMU should do after a callback.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    GoOn,
    /// Drop all translations and all callbacks.
    Reset,
}

pub(crate) struct Recorder {
    pub(crate) parameters: Parameters,
    pub(crate) arch: Arch,
    vcpus: u8,
    registers: Option<Registers>,
    counter: *mut c_void,
    idt: Option<u64>,
    pub(crate) handlers: HashMap<u64, u8>,
    phase: Phase,
}

impl Recorder {
    pub(crate) fn new(parameters: Parameters, arch: Arch, vcpus: u8) -> Self {
        Self {
            parameters,
            arch,
            vcpus,
            registers: None,
            counter: std::ptr::null_mut(),
            idt: None,
            handlers: HashMap::new(),
            phase: Phase::Waiting,
        }
    }

    /// Whether every instruction is to be instrumented.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running(_)) && self.parameters.stage != Stage::Bare
    }

    fn registers(&mut self) -> &Registers {
        if self.registers.is_none() {
            let registers = Registers::list();
            let counter = registers.handle("rip").or_else(|| registers.handle("pc"));
            self.counter = counter.unwrap_or(std::ptr::null_mut());
            self.registers = Some(registers);
        }
        self.registers.as_ref().expect("listed just now")
    }

    /// To be called at each translation; begins the session if the marker was met.
    pub(crate) fn translating(&mut self) {
        if matches!(self.phase, Phase::Starting) {
            match self.begin() {
                Ok(session) => self.phase = Phase::Running(Box::new(session)),
                Err(error) => {
                    self.phase = Phase::Over;
                    self.report(&format!("error {error}"));
                }
            }
        }
    }

    fn begin(&mut self) -> Result<Session, String> {
        self.registers();
        let registers = self.registers.as_ref().expect("listed just now");
        let (start, encoding) = match self.arch {
            Arch::X86_64 => (0, Encoding::X86),
            // Where QEMU's machine `virt` has its RAM.
            Arch::Aarch64 => (0x4000_0000, Encoding::Aarch64),
        };
        let ram = Ram::find(&self.parameters.ram, start);
        let ram = ram.ok_or_else(|| format!("{} is not mapped", self.parameters.ram))?;
        let handlers = match (self.arch, self.idt) {
            (Arch::X86_64, Some(base)) => x86::handlers(registers, base),
            (Arch::X86_64, None) => return Err("the guest loaded no IDT before the marker".into()),
            (Arch::Aarch64, _) => aarch64::handlers(registers),
        };
        self.handlers = handlers.into_iter().collect();
        let machine =
            Machine { arch: self.arch, vcpus: self.vcpus, tables: true, memory: Some(ram.range()) };
        let mut output = match self.parameters.stage {
            Stage::Full => Some(self.create(&machine)?),
            _ => None,
        };
        let tables = Tables::new(encoding, &ram);
        let mut encoder = Encoder::new(self.vcpus);
        if let Some(accesses) = self.parameters.block_accesses {
            encoder = encoder.with_block_accesses(accesses);
        }
        let notes = match &mut output {
            Some(output) => Notes::encoded(encoder, output.take())
                .map_err(|error| format!("no thread to encode: {error}"))?,
            None => Notes::discarded(),
        };
        Ok(Session {
            ram,
            notes,
            shapes: Shapes::default(),
            tables,
            output,
            vcpus: (0..self.vcpus).map(|_| Vcpu::default()).collect(),
            current: 0,
            identities: Identities::new(registers, self.arch),
            began: Instant::now(),
            cpu_at_start: thread_cpu(),
        })
    }

    fn create(&self, machine: &Machine) -> Result<Output, String> {
        let parameters = &self.parameters;
        let fail = |what: &std::path::Path, error| format!("{}: {error}", what.display());
        let mut provenance = Provenance::new();
        if let Some(path) = &parameters.provenance {
            let text = std::fs::read_to_string(path).map_err(|error| fail(path, error))?;
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            provenance.extend(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
        }
        provenance.push((
            "recorder".into(),
            concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).into(),
        ));
        provenance.push(("level".into(), parameters.level.to_string()));
        let progress = parameters.progress.as_deref();
        Output::create(&parameters.output, progress, machine, &provenance, parameters.level)
            .map_err(|error| fail(&parameters.output, error))
    }

    /// A block was translated: `host` is where QEMU has its first byte. None while no session runs.
    pub(crate) fn block(
        &mut self,
        va: u64,
        host: *const u8,
        bytes: u16,
        instructions: u16,
    ) -> Option<Block> {
        let Phase::Running(session) = &mut self.phase else { return None };
        // Outside of RAM the physical page is not known.
        let gpa = session.ram.address_of(host).unwrap_or(u64::from(u32::MAX) << 12 | va & 0xfff);
        let number = session.notes.define(Definition { gpa, bytes, instructions });
        Some(Block { va, page: gpa >> 12, number, handler: self.handlers.get(&va).copied() })
    }

    /// A special instruction of the block at work is about to execute.
    pub(crate) fn special(&mut self, special: &Special) -> Then {
        self.registers();
        let registers = self.registers.as_ref().expect("listed just now");
        let (event, check_mode, marker) = match special {
            Special::X86(x86::Special::Cpuid, _) => (None, false, x86::marker(registers)),
            Special::X86(x86::Special::Lidt, instruction) => {
                self.idt = x86::handler_table(registers, instruction).or(self.idt);
                (None, false, None)
            }
            Special::X86(kind, instruction) => {
                let check = matches!(kind, x86::Special::Return | x86::Special::Call);
                (x86::event(registers, *kind, instruction), check, None)
            }
            Special::Aarch64(aarch64::Special::Marker(begin), _) => (None, false, Some(*begin)),
            Special::Aarch64(kind, word) => {
                let check = matches!(kind, aarch64::Special::Return);
                (aarch64::event(registers, *kind, *word), check, None)
            }
        };
        if let Some(begin) = marker {
            return self.marker(begin);
        }
        if self.parameters.stage < Stage::Note {
            return Then::GoOn;
        }
        let Phase::Running(session) = &mut self.phase else { return Then::GoOn };
        let vcpu = session.current;
        session.vcpus[usize::from(vcpu)].check_mode |= check_mode;
        if let Some(event) = event {
            session.happened(vcpu, registers, event);
        }
        Then::GoOn
    }

    fn marker(&mut self, begin: bool) -> Then {
        match (&self.phase, begin) {
            (Phase::Waiting, true) => {
                self.phase = Phase::Starting;
                Then::Reset
            }
            (Phase::Running(_), false) => {
                self.finish("marker");
                Then::Reset
            }
            _ => Then::GoOn,
        }
    }

    /// A block begins to execute.
    #[inline]
    pub(crate) fn executes(&mut self, block: &Block) -> Then {
        let Phase::Running(session) = &mut self.phase else { return Then::GoOn };
        let Some(registers) = &self.registers else { return Then::GoOn };
        if session.notes.accesses() >= self.parameters.most_accesses || session.notes.is_broken() {
            return self.stop();
        }
        if self.vcpus > 1 {
            session.current = session.identities.current(registers, self.vcpus);
        }
        let vcpu = session.current;
        let state = &mut session.vcpus[usize::from(vcpu)];
        if !state.begun || state.check_mode || block.handler.is_some() {
            session.check(vcpu, registers, self.arch, block.handler);
        }
        let state = &mut session.vcpus[usize::from(vcpu)];
        // A translation is shared by all virtual pages that map its physical page, and its address
        // is that of the first: the true one is in the program counter. The kernel's text has one.
        let va = match state.page {
            Some((known, va)) if known == block.page => va << 12 | block.va & 0xfff,
            _ if block.va >> 63 == 0 => registers.read(self.counter),
            _ => block.va,
        };
        state.page = Some((block.page, va >> 12));
        session.notes.execute(vcpu, block.number, va);
        Then::GoOn
    }

    #[cold]
    fn stop(&mut self) -> Then {
        let Phase::Running(session) = &self.phase else { return Then::GoOn };
        if session.notes.is_broken() {
            self.finish("error");
            return Then::Reset;
        }
        self.finish("limit");
        // To the process and not to this thread, which has the signal blocked.
        // SAFETY: sends a signal to this process, whose handler is QEMU's.
        unsafe { ffi::kill(ffi::getpid(), ffi::TERMINATE) };
        Then::Reset
    }

    /// The block at work has loaded or stored.
    #[inline]
    pub(crate) fn accessed(&mut self, info: u32, va: u64) {
        let Phase::Running(session) = &mut self.phase else { return };
        let vcpu = session.current;
        let shape = session.shapes.of(info);
        // SAFETY: called by a memory callback with the values that it was given, as the interface
        // asks; the handle is used at once.
        let (address, gpa) = unsafe {
            let address = ffi::qemu_plugin_get_hwaddr(info, va);
            let known = !address.is_null();
            (address, if known { ffi::qemu_plugin_hwaddr_phys_addr(address) } else { u64::MAX })
        };
        if !session.ram.is_plain(gpa) {
            return session.odd_access(vcpu, shape, va, gpa, address);
        }
        session.notes.access(vcpu, shape, va, (gpa >> 12) as u32);
        if shape & 1 != 0 && session.tables.is_table(&session.ram, gpa) {
            session.table_store(vcpu, shape, gpa);
        }
    }

    /// As [`accessed`](Self::accessed), to measure what asking for the address costs.
    #[inline]
    pub(crate) fn address_only(info: u32, va: u64) {
        // SAFETY: as in `accessed`.
        unsafe {
            let address = ffi::qemu_plugin_get_hwaddr(info, va);
            if !address.is_null() {
                std::hint::black_box(ffi::qemu_plugin_hwaddr_phys_addr(address));
            }
        }
    }

    /// Writes what there is and ends the recording; `why` goes into the report.
    pub(crate) fn finish(&mut self, why: &str) {
        let Phase::Running(session) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        let Session { notes, output, began, cpu_at_start, .. } = *session;
        let cpu = thread_cpu() - cpu_at_start;
        let seconds = began.elapsed().as_secs_f64();
        let accesses = notes.accesses();
        let encode = notes.finish();
        let Some(output) = output else {
            self.report(&format!("done {why} accesses={accesses} cpu={cpu:.3}"));
            return;
        };
        match output.finish() {
            Ok((totals, compress)) => self.report(&format!(
                "done {why} accesses={} instructions={} bytes={} cpu={cpu:.3} seconds={seconds:.3} \
                 encode={encode:.3} compress={compress:.3}",
                totals.accesses, totals.instructions, totals.bytes
            )),
            Err(error) => {
                self.report(&format!("error {}: {error}", self.parameters.output.display()));
            }
        }
    }

    fn report(&self, line: &str) {
        match &self.parameters.report {
            Some(path) => {
                if let Err(error) = std::fs::write(path, format!("{line}\n")) {
                    eprintln!("slat-recorder: {}: {error}", path.display());
                }
            }
            None => eprintln!("slat-recorder: {line}"),
        }
    }
}

impl Session {
    /// An access outside of RAM, or whose address QEMU does not know.
    #[cold]
    fn odd_access(&mut self, vcpu: u8, shape: u8, va: u64, gpa: u64, address: *const c_void) {
        if address.is_null() {
            return self.notes.access(vcpu, shape, va, u32::MAX);
        }
        // SAFETY: the handle is of the access at work and not null.
        if unsafe { ffi::qemu_plugin_hwaddr_is_io(address) } {
            let (len, store) = (1 << (shape >> 1).min(6), shape & 1 != 0);
            return self.notes.event(vcpu, &Event::Io { va, gpa, len, store }, &[]);
        }
        self.notes.access(vcpu, shape, va, (gpa >> 12) as u32);
        if shape & 1 != 0 && self.tables.is_table(&self.ram, gpa) {
            self.table_store(vcpu, shape, gpa);
        }
    }

    #[inline(never)]
    fn table_store(&mut self, vcpu: u8, shape: u8, gpa: u64) {
        let Self { tables, notes, ram, .. } = self;
        let mut sink = |event: Event, entries: &[_]| notes.event(vcpu, &event, entries);
        tables.stored(ram, gpa, 1 << (shape >> 1), &mut sink);
    }

    /// Notes an event and, for a root, follows the new tree.
    fn happened(&mut self, vcpu: u8, registers: &Registers, event: Event) {
        self.notes.event(vcpu, &event, &[]);
        match event {
            Event::Root { root, value } => {
                let (gpa, level) = match root {
                    Root::Cr3 => x86::root(registers, value),
                    _ => aarch64::root(registers, root, value),
                };
                self.vcpus[usize::from(vcpu)].roots[root as usize] = gpa;
                let in_use: Vec<u64> = self.vcpus.iter().flat_map(|vcpu| vcpu.roots).collect();
                let Self { notes, tables, ram, .. } = self;
                let mut sink = |event: Event, entries: &[_]| notes.event(vcpu, &event, entries);
                tables.load_root(ram, gpa, level, in_use, &mut sink);
            }
            Event::Msr { number: x86::EFER, value } => {
                let event = Event::Control { register: Control::Efer, value };
                self.notes.event(vcpu, &event, &[]);
            }
            _ => {}
        }
    }

    /// Before a block: the registers of a vCPU that runs for the first time, an exception, a change
    /// of privilege.
    #[cold]
    fn check(&mut self, vcpu: u8, registers: &Registers, arch: Arch, handler: Option<u8>) {
        let first = !self.vcpus[usize::from(vcpu)].begun;
        if first {
            self.vcpus[usize::from(vcpu)].begun = true;
            let initial = match arch {
                Arch::X86_64 => x86::initial(registers),
                Arch::Aarch64 => aarch64::initial(registers),
            };
            for event in initial {
                self.happened(vcpu, registers, event);
            }
        }
        if let Some(vector) = handler {
            let exception = match arch {
                Arch::X86_64 => x86::exception(registers, vector),
                Arch::Aarch64 => aarch64::exception(registers, vector),
            };
            self.notes.event(vcpu, &Event::Exception(exception), &[]);
        }
        let user = match arch {
            Arch::X86_64 => x86::is_user(registers),
            Arch::Aarch64 => aarch64::is_user(registers),
        };
        let state = &mut self.vcpus[usize::from(vcpu)];
        state.check_mode = false;
        if first || state.user != user {
            state.user = user;
            self.notes.event(vcpu, &Event::Mode { user }, &[]);
        }
    }
}

//! What runs on the generated guest.

mod access;
mod compile;
mod micro;
mod server;
mod sessions;

use super::kernel::{Area, Backing, Kernel};
use super::parameter::{Parameter, Values};
use crate::preset::Confidence;

/// A running workload.
pub(crate) trait Workload: Send {
    /// Does the next small piece.
    fn step(&mut self, kernel: &mut Kernel);
}

/// A workload that can be asked for.
pub(crate) struct Kind {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it does, in a line.
    pub(crate) about: &'static str,
    /// What can be chosen, beside [`super::parameter::COMMON`].
    pub(crate) parameters: &'static [Parameter],
    /// Accesses emitted a thousand instructions of a path: 690 is what recordings have.
    pub(crate) density: u64,
    /// How sure its instruction counts are.
    pub(crate) instructions: Confidence,
    /// What share of a data miss's or walk's time is waited for; `None` for what the processor's
    /// preset assumes of programs in general.
    pub(crate) exposed: Option<f64>,
    /// Accesses in which all that it does happens, for one that goes through phases; `None` where each
    /// stretch is like any other.
    pub(crate) life: Option<fn(&Values) -> u64>,
    /// Builds its processes and areas.
    pub(crate) build: fn(&Values, &mut Kernel) -> Box<dyn Workload>,
}

/// Accesses in which all that a workload does happens; 0 where each stretch is like any other.
pub(crate) fn life_of(kind: &Kind, values: &Values) -> u64 {
    kind.life.map_or(0, |life| life(values))
}

/// All workloads.
pub(crate) const ALL: &[Kind] = &[
    micro::SEGV,
    micro::PCD,
    micro::NPS,
    micro::FCW,
    compile::COMPILE,
    server::OLTP,
    sessions::TERMINAL,
    server::JBB,
    access::GUPS,
    access::CHASE,
    access::BTREE,
    server::IO,
];

/// Where programs have their text.
const TEXT: u64 = 0x40_0000;
/// Their data segment.
const DATA: u64 = 0x200_0000;
/// Their heap.
const HEAP: u64 = 0x1_0000_0000;
/// Shared memory and mapped files.
const SHARED: u64 = 0x2000_0000_0000;
/// The C library's text.
const LIBRARY: u64 = 0x7f00_0000_0000;
/// The end of their stack.
const STACK: u64 = 0x7fff_ffff_f000;

/// Files, by number: each program is one, and so is the library.
const LIBRARY_FILE: u32 = 1;

/// Areas of a program: text, data and heap pages, the C library (1.8 MiB of text) and a stack.
fn program(file: u32, text: u64, data: u64, heap: u64, huge: bool) -> Vec<Area> {
    let area = |start: u64, pages: u64, backing, writable, executable| Area {
        start,
        end: start + (pages << 12),
        backing,
        writable,
        executable,
    };
    let from = |file, first| Backing::File { file, first };
    let mut areas = vec![
        area(TEXT, text, from(file, 0), false, true),
        area(DATA, data, from(file, text), true, false),
    ];
    if heap > 0 {
        areas.push(area(HEAP, heap, Backing::Anonymous { huge }, true, false));
    }
    areas.extend([
        area(LIBRARY, 450, from(LIBRARY_FILE, 0), false, true),
        area(LIBRARY + (450 << 12), 6, from(LIBRARY_FILE, 450), true, false),
        area(STACK - (32 << 12), 32, Backing::Anonymous { huge: false }, true, false),
    ]);
    areas
}

/// The stack of [`program`].
fn stack(areas: &[Area]) -> Area {
    areas[areas.len() - 1]
}

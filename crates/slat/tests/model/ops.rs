//! What is done, and how: random operations.

use proptest::prelude::*;

use super::PAGES;

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Map {
        at: u64,
        pages: u64,
        output: u64,
        attributes: u8,
        up_to: u8,
        grouped: bool,
    },
    Unmap {
        at: u64,
        pages: u64,
    },
    Protect {
        at: u64,
        pages: u64,
        permissions: u8,
    },
    Retype {
        at: u64,
        pages: u64,
        memory: u8,
    },
    Remap {
        at: u64,
        pages: u64,
        output: u64,
    },
    Split {
        at: u64,
        pages: u64,
        to: u8,
    },
    Collapse {
        at: u64,
        pages: u64,
        to: u8,
    },
    Clean {
        at: u64,
        pages: u64,
    },
    Age {
        at: u64,
        pages: u64,
    },
    /// One page is faulted in, by a cursor or without.
    Fault {
        at: u64,
        output: u64,
        attributes: u8,
        by_cursor: bool,
    },
    /// One page goes, by a cursor or without.
    Remove {
        at: u64,
        by_cursor: bool,
    },
    /// Hardware writes through a page.
    Write {
        at: u64,
    },
    /// The source runs dry after so many frames.
    Starve {
        frames: u32,
    },
}

pub(crate) fn position() -> impl Strategy<Value = u64> {
    prop_oneof![0..PAGES, (0..4u64).prop_map(|block| block * 512), (0..8u64).prop_map(|n| n * 255)]
}

pub(crate) fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1..16u64, Just(512u64), Just(1024u64), 1..PAGES]
}

pub(crate) fn operation() -> impl Strategy<Value = Op> {
    let range = || (position(), length());
    // Outputs agree with inputs modulo 2 MiB or do not.
    let output = || prop_oneof![Just(0u64), Just(512u64), Just(4096u64), 0..4096u64];
    let blocks = || ((0..4u64).prop_map(|at| at * 512), Just(1024u64));
    prop_oneof![
        2 => (blocks(), any::<u8>(), 0..2u8, any::<bool>()).prop_map(
            |((at, pages), attributes, up_to, grouped)| Op::Map {
                at, pages, output: 0, attributes, up_to, grouped
            }),
        2 => (blocks(), 1..3u8).prop_map(|((at, pages), to)| Op::Collapse { at, pages, to }),
        4 => (range(), output(), any::<u8>(), 0..3u8, any::<bool>()).prop_map(
            |((at, pages), output, attributes, up_to, grouped)| Op::Map {
                at, pages, output, attributes, up_to, grouped
            }),
        3 => range().prop_map(|(at, pages)| Op::Unmap { at, pages }),
        2 => (range(), any::<u8>()).prop_map(|((at, pages), permissions)| Op::Protect {
            at, pages, permissions
        }),
        1 => (range(), any::<u8>()).prop_map(|((at, pages), memory)| Op::Retype {
            at, pages, memory
        }),
        1 => (range(), output()).prop_map(|((at, pages), output)| Op::Remap { at, pages, output }),
        1 => (range(), 0..2u8).prop_map(|((at, pages), to)| Op::Split { at, pages, to }),
        2 => (range(), 1..3u8).prop_map(|((at, pages), to)| Op::Collapse { at, pages, to }),
        1 => range().prop_map(|(at, pages)| Op::Clean { at, pages }),
        1 => range().prop_map(|(at, pages)| Op::Age { at, pages }),
        2 => (position(), 0..4096u64, any::<u8>(), any::<bool>()).prop_map(
            |(at, output, attributes, by_cursor)| Op::Fault { at, output, attributes, by_cursor }),
        2 => (position(), any::<bool>()).prop_map(|(at, by_cursor)| Op::Remove { at, by_cursor }),
        3 => (0..PAGES).prop_map(|at| Op::Write { at }),
        1 => (0..6u32).prop_map(|frames| Op::Starve { frames }),
    ]
}

/// How an operation is driven: the budget of a step, and after how many it is abandoned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drive {
    pub(crate) budget: u32,
    pub(crate) steps: u32,
    pub(crate) slots: usize,
}

pub(crate) fn drive() -> impl Strategy<Value = Drive> {
    let budget = prop_oneof![Just(u32::MAX), 1..4u32];
    let steps = prop_oneof![3 => Just(u32::MAX), 1 => 0..4u32];
    (budget, steps, 1..5usize).prop_map(|(budget, steps, slots)| Drive { budget, steps, slots })
}

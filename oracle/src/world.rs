//! The memory of a probe: the arena with its tables and pages, and nothing else.

use slat::{Access, EntryLayout, EntrySize, Memory, Reached, Spa, Value};

use crate::contract::{Machine, Segment};

const PAGE: u64 = 0x1000;

/// What a machine does where it has no RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// Reads give zero and writes are lost (QEMU's PC).
    Zero,
    /// Reads give all ones and writes are lost (Bochs).
    Ones,
    /// The access ends with an external abort or access fault (QEMU's Arm and RISC-V machines).
    Abort,
}

/// There is no RAM at this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRam {
    /// The address.
    pub address: u64,
}

/// A machine's memory as the walker sees it.
///
/// Writes are kept in a log, so that a world is as it was after [`World::reset`].
#[derive(Clone, Debug)]
pub struct World {
    machine: Machine,
    beyond: Beyond,
    words: Vec<u64>,
    log: Vec<(u64, u64)>,
    seen: Vec<u64>,
    /// Whether something was read that the harness knows nothing of: the monitor and its queue.
    strayed: bool,
}

impl World {
    /// An arena of zeros.
    #[must_use]
    pub fn new(machine: &Machine, beyond: Beyond) -> Self {
        let words = ((machine.arena.end - machine.arena.start) / 8) as usize;
        World {
            machine: machine.clone(),
            beyond,
            words: vec![0; words],
            log: Vec::new(),
            seen: Vec::new(),
            strayed: false,
        }
    }

    /// The memory map.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What the machine does where it has no RAM.
    #[must_use]
    pub fn beyond(&self) -> Beyond {
        self.beyond
    }

    /// Sets what the machine does where it has no RAM.
    pub fn set_beyond(&mut self, beyond: Beyond) {
        self.beyond = beyond;
    }

    fn index(&self, address: u64) -> Option<usize> {
        let arena = &self.machine.arena;
        arena.contains(&address).then(|| ((address - arena.start) / 8) as usize)
    }

    /// Whether neither RAM nor a device is at `address`.
    pub(crate) fn is_empty(&self, address: u64) -> bool {
        !self.machine.is_device(address) && !self.machine.ram.contains(&address)
    }

    /// The aligned 64-bit word that holds the byte at `address`, or what the machine gives where it
    /// has no RAM; `None` where that is an abort.
    #[must_use]
    pub fn word(&self, address: u64) -> Option<u64> {
        if let Some(index) = self.index(address) {
            return Some(self.words[index]);
        }
        if self.machine.ram.contains(&address) {
            let outside = self.log.iter().rev().find(|(at, _)| *at == address & !7);
            return Some(outside.map_or(0, |(_, value)| *value));
        }
        match self.beyond {
            Beyond::Zero => Some(0),
            Beyond::Ones => Some(u64::MAX),
            Beyond::Abort => None,
        }
    }

    /// Writes an aligned word for the time until [`World::reset`].
    pub fn poke(&mut self, address: u64, value: u64) {
        let address = address & !7;
        if let Some(index) = self.index(address) {
            self.log.push((address, self.words[index]));
            self.words[index] = value;
        } else if self.machine.ram.contains(&address) {
            self.log.push((address, value));
        }
    }

    /// Writes an aligned word for good.
    ///
    /// # Panics
    /// Where `address` lies outside the arena.
    pub fn set(&mut self, address: u64, value: u64) {
        let index = self.index(address).expect("a fixed word lies in the arena");
        self.words[index] = value;
    }

    /// Whether something was reached that the harness knows nothing of.
    #[must_use]
    pub fn strayed(&self) -> bool {
        self.strayed
    }

    /// Undoes every [`World::poke`].
    pub fn reset(&mut self) {
        while let Some((address, value)) = self.log.pop() {
            if let Some(index) = self.index(address) {
                self.words[index] = value;
            }
        }
        self.strayed = false;
        self.seen.clear();
    }

    /// Keeps every [`World::poke`] for good.
    pub fn keep(&mut self) {
        self.log.clear();
        self.strayed = false;
        self.seen.clear();
    }

    /// The aligned words that walks have read or updated since the last reset, each once.
    #[must_use]
    pub fn seen(&self) -> &[u64] {
        &self.seen
    }

    /// Notes that the word at `address` was reached, and marks the world as strayed where it
    /// belongs to the monitor.
    pub fn visit(&mut self, address: u64) {
        let word = address & !7;
        if !self.seen.contains(&word) {
            self.seen.push(word);
        }
        let machine = &self.machine;
        // Between the arena and the queue lies RAM that nobody else uses; below the queue's end and
        // at the end of RAM lie the monitor, the queue, and what the emulator put there.
        let emulators = if machine.monitor.is_none() { 0 } else { 0x80_0000 };
        let free = machine.queue.end..machine.ram.end - emulators;
        if machine.is_device(address) || machine.ram.contains(&address) && !free.contains(&address)
        {
            self.strayed = true;
        }
    }

    /// The arena's non-zero pages.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        let per_page = (PAGE / 8) as usize;
        let mut all: Vec<Segment> = Vec::new();
        for (i, page) in self.words.chunks(per_page).enumerate() {
            if page.iter().all(|&word| word == 0) {
                continue;
            }
            let address = self.machine.arena.start + i as u64 * PAGE;
            let bytes = page.iter().flat_map(|word| word.to_le_bytes());
            match all.last_mut() {
                Some(last) if last.address + last.bytes.len() as u64 == address => {
                    last.bytes.extend(bytes);
                }
                _ => all.push(Segment { address, bytes: bytes.collect() }),
            }
        }
        all
    }
}

fn part(address: u64, layout: EntryLayout, word: u64) -> u64 {
    match layout.size {
        EntrySize::Eight => word,
        EntrySize::Four => word >> (8 * (address & 4)) & 0xFFFF_FFFF,
    }
}

impl Memory for World {
    type Address = Spa;
    type Fault = NoRam;

    fn read(&mut self, address: Spa, layout: EntryLayout, _: &Access) -> Result<Value, NoRam> {
        let address = address.raw();
        self.visit(address);
        let word = self.word(address).ok_or(NoRam { address })?;
        Ok(Value { value: part(address, layout, word), reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        _: &Access,
    ) -> Result<bool, NoRam> {
        let address = address.raw();
        self.visit(address);
        let word = self.word(address).ok_or(NoRam { address })?;
        if part(address, layout, word) != current {
            return Ok(false);
        }
        let word = match layout.size {
            EntrySize::Eight => new,
            EntrySize::Four => {
                let shift = 8 * (address & 4);
                word & !(0xFFFF_FFFF << shift) | new << shift
            }
        };
        self.poke(address, word);
        // Where there is no RAM the write is lost, which the hardware does not notice.
        Ok(true)
    }
}

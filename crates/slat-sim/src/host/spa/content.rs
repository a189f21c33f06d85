//! What the memory holds: pages that were never written are zeros and take no space.

use slat::{Access, EntryLayout, EntrySize, Memory, Outside, Reached, Spa, Value};

use super::{Frame, Owner, PAGE, SystemMemory};

impl SystemMemory {
    /// A page's content; `None` where it is all zeros. Of the pool, nothing.
    pub(in crate::host) fn frame(&self, spa: u64) -> Option<&Frame> {
        self.frames.get((spa / PAGE) as usize)?.as_deref()
    }

    /// A page's content, to write.
    pub(in crate::host) fn frame_mut(&mut self, spa: u64) -> Option<&mut Frame> {
        let frame = self.frames.get_mut((spa / PAGE) as usize)?;
        Some(frame.get_or_insert_with(|| Box::new([0; 512])))
    }

    /// Puts a page's content; `None` is all zeros.
    pub(in crate::host) fn put_frame(&mut self, spa: u64, content: Option<&Frame>) {
        if let Some(frame) = self.frames.get_mut((spa / PAGE) as usize) {
            *frame = content.map(|content| Box::new(*content));
        }
    }

    /// The eight bytes at `spa`, a multiple of 8.
    pub fn load(&self, spa: u64) -> u64 {
        if self.pool.contains(spa) {
            return self.pool.load(spa);
        }
        self.frame(spa).map_or(0, |frame| frame[(spa / 8 % 512) as usize])
    }

    /// Stores eight bytes at `spa`, a multiple of 8, outside the pool.
    pub(in crate::host) fn store(&mut self, spa: u64, value: u64) {
        if let Some(frame) = self.frame_mut(spa) {
            frame[(spa / 8 % 512) as usize] = value;
        }
    }

    fn holds(&self, spa: u64) -> bool {
        self.owner(spa).is_some_and(|owner| owner != Owner::Hole)
    }
}

impl Memory for SystemMemory {
    type Address = Spa;
    type Fault = Outside<Spa>;

    fn read(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        _: &Access,
    ) -> Result<Value, Outside<Spa>> {
        let spa = address.raw();
        if !self.holds(spa) {
            return Err(Outside { address, write: false });
        }
        let word = self.load(spa & !7);
        let value = match layout.size {
            EntrySize::Eight => word,
            EntrySize::Four => word >> (8 * (spa & 4)) & 0xffff_ffff,
        };
        Ok(Value { value, reached: Reached::DIRECTLY })
    }

    fn compare_exchange(
        &mut self,
        address: Spa,
        layout: EntryLayout,
        current: u64,
        new: u64,
        access: &Access,
    ) -> Result<bool, Outside<Spa>> {
        let spa = address.raw();
        let now = self.read(address, layout, access)?.value;
        if now != current {
            return Ok(false);
        }
        if self.pool.contains(spa) {
            return Ok(self.pool.compare_exchange(spa, current, new));
        }
        match layout.size {
            EntrySize::Eight => self.store(spa, new),
            EntrySize::Four => {
                let shift = 8 * (spa & 4);
                let word = self.load(spa & !7) & !(0xffff_ffff << shift) | new << shift;
                self.store(spa & !7, word);
            }
        }
        Ok(true)
    }
}

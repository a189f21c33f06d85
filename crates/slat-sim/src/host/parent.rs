//! The parent partition: it owns what nobody else has, and may page its own memory to a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use super::spa::{Frame, NotEnough, Owner, PAGE, SystemMemory};

/// Where one of the parent's pages is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Memory(u64),
    File(u64),
}

#[derive(Clone, Copy, Debug)]
struct Page {
    place: Place,
    /// When it was last used.
    used: u64,
}

/// The parent's use of its own memory.
#[derive(Debug)]
pub struct Parent {
    pages: Vec<Page>,
    file: Option<File>,
    /// Slots of the file that no page is in.
    free_slots: Vec<u64>,
    slots: u64,
    clock: u64,
    /// Pages written to the file so far.
    pub paged_out: u64,
    /// Pages read back so far.
    pub paged_in: u64,
}

/// What the parent cannot do.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// The file.
    #[error("the parent's page file: {0}")]
    File(#[from] std::io::Error),
    /// No memory for a page that is to come back.
    #[error("the parent needs memory for its own page: {0}")]
    Memory(NotEnough),
    /// It has no such page.
    #[error("the parent has no page {0}")]
    NoPage(u64),
}

impl Parent {
    /// A parent that uses so many bytes, all in memory, each page filled with its number. With
    /// `paging`, it may page them to a file that no one else sees.
    ///
    /// # Errors
    /// Where memory is not enough, or no file can be made.
    pub(super) fn new(
        memory: &mut SystemMemory,
        bytes: u64,
        paging: bool,
    ) -> Result<Parent, ParentError> {
        let got =
            memory.allocate(Owner::Parent, &[(0, bytes)], 1, 0).map_err(ParentError::Memory)?;
        let mut pages = Vec::new();
        for backing in got {
            for spa in (backing.spa..backing.spa + backing.bytes).step_by(PAGE as usize) {
                let content: Frame = content(pages.len() as u64, 0);
                memory.put_frame(spa, Some(&content));
                pages.push(Page { place: Place::Memory(spa), used: 0 });
            }
        }
        Ok(Parent {
            pages,
            file: if paging { Some(tempfile::tempfile()?) } else { None },
            free_slots: Vec::new(),
            slots: 0,
            clock: 0,
            paged_out: 0,
            paged_in: 0,
        })
    }

    /// Pages that it uses.
    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Of those, in memory.
    pub fn resident(&self) -> u64 {
        self.pages.iter().filter(|page| matches!(page.place, Place::Memory(_))).count() as u64
    }

    /// Whether it may page.
    pub fn may_page(&self) -> bool {
        self.file.is_some()
    }

    /// Size of the file, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.slots * PAGE
    }

    /// How many bytes it could page out: all but an eighth of its pages.
    pub(super) fn could_page_out(&self) -> u64 {
        let keep = self.pages().div_ceil(8);
        if self.may_page() { self.resident().saturating_sub(keep) * PAGE } else { 0 }
    }

    /// Pages out what has not been used for longest, until `bytes` more are unused or an eighth of
    /// its pages are left. Returns how many bytes became unused.
    pub(super) fn page_out(
        &mut self,
        memory: &mut SystemMemory,
        bytes: u64,
    ) -> Result<u64, ParentError> {
        let take = bytes.div_ceil(PAGE).min(self.could_page_out() / PAGE) as usize;
        self.write_out(memory, take)
    }

    /// Pages out this many of its pages, those that have not been used for longest first. Returns how
    /// many bytes became unused.
    fn write_out(&mut self, memory: &mut SystemMemory, take: usize) -> Result<u64, ParentError> {
        let Some(file) = &mut self.file else { return Ok(0) };
        let mut resident: Vec<(u64, usize)> = self
            .pages
            .iter()
            .enumerate()
            .filter(|(_, page)| matches!(page.place, Place::Memory(_)))
            .map(|(number, page)| (page.used, number))
            .collect();
        resident.sort_unstable();
        resident.truncate(take);
        for &(_, number) in &resident {
            let Place::Memory(spa) = self.pages[number].place else { continue };
            let slot = self.free_slots.pop().unwrap_or_else(|| {
                self.slots += 1;
                self.slots - 1
            });
            let frame = memory.frame(spa).copied().unwrap_or([0; 512]);
            let bytes: Vec<u8> = frame.iter().flat_map(|word| word.to_le_bytes()).collect();
            file.seek(SeekFrom::Start(slot * PAGE))?;
            file.write_all(&bytes)?;
            self.pages[number].place = Place::File(slot);
            memory.release(spa, PAGE);
            self.paged_out += 1;
        }
        Ok(resident.len() as u64 * PAGE)
    }

    /// The parent reads and writes one of its pages; says whether its content was what it had
    /// written there.
    ///
    /// # Errors
    /// Of the file, and where there is no memory to bring it back to.
    pub(super) fn touch(
        &mut self,
        memory: &mut SystemMemory,
        number: u64,
    ) -> Result<bool, ParentError> {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        let page = *self.pages.get(index).ok_or(ParentError::NoPage(number))?;
        let spa = match page.place {
            Place::Memory(spa) => spa,
            Place::File(slot) => {
                // One of its own gives way, however few are left: as many are there afterwards.
                if memory.owned(Owner::Unused) < PAGE {
                    self.write_out(memory, 1)?;
                }
                let got = memory
                    .allocate(Owner::Parent, &[(0, PAGE)], 0, 0)
                    .map_err(ParentError::Memory)?;
                let Some(file) = &mut self.file else { return Ok(false) };
                let mut bytes = [0u8; PAGE as usize];
                file.seek(SeekFrom::Start(slot * PAGE))?;
                file.read_exact(&mut bytes)?;
                let mut frame: Frame = [0; 512];
                for (word, bytes) in frame.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *word = u64::from_le_bytes(*bytes);
                }
                memory.put_frame(got[0].spa, Some(&frame));
                self.free_slots.push(slot);
                self.pages[index].place = Place::Memory(got[0].spa);
                self.paged_in += 1;
                got[0].spa
            }
        };
        self.clock += 1;
        let was = memory.frame(spa).copied().unwrap_or([0; 512]);
        let right = was == content(number, page.used);
        memory.put_frame(spa, Some(&content(number, self.clock)));
        self.pages[index].used = self.clock;
        Ok(right)
    }
}

/// What the parent writes to a page.
fn content(number: u64, at: u64) -> Frame {
    std::array::from_fn(|word| {
        (number << 40 | at << 12 | word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_from_the_file_as_they_were() {
        let mut memory = SystemMemory::new(&[8 << 20], &[], 2 << 20).unwrap();
        let mut parent = Parent::new(&mut memory, 1 << 20, true).unwrap();
        for number in 0..256 {
            assert!(parent.touch(&mut memory, number).unwrap());
        }
        assert_eq!(parent.page_out(&mut memory, 1 << 20).unwrap(), 224 * PAGE);
        assert_eq!(parent.resident(), 32, "an eighth stays");
        assert_eq!(parent.file_bytes(), 224 * PAGE);
        // The oldest went; each comes back with what was written last.
        for number in (0..256).rev() {
            assert!(parent.touch(&mut memory, number).unwrap(), "page {number}");
        }
        assert_eq!(parent.paged_in, 224);
        assert_eq!(parent.page_out(&mut memory, PAGE).unwrap(), PAGE);
        assert_eq!(parent.file_bytes(), 224 * PAGE, "slots are used again");
    }

    #[test]
    fn a_page_comes_back_in_place_of_another_where_nothing_is_unused() {
        let mut memory = SystemMemory::new(&[8 << 20], &[], 2 << 20).unwrap();
        let mut parent = Parent::new(&mut memory, 1 << 20, true).unwrap();
        parent.page_out(&mut memory, 1 << 20).unwrap();
        let unused = memory.owned(Owner::Unused);
        memory.allocate(Owner::Partition(0), &[(0, unused)], 1, 0).unwrap();
        for number in 0..256 {
            assert!(parent.touch(&mut memory, number).unwrap(), "page {number}");
            assert_eq!(parent.resident(), 32);
        }
    }

    #[test]
    fn a_lost_write_would_be_seen() {
        let mut memory = SystemMemory::new(&[8 << 20], &[], 2 << 20).unwrap();
        let mut parent = Parent::new(&mut memory, 1 << 20, true).unwrap();
        let Place::Memory(spa) = parent.pages[3].place else { unreachable!() };
        memory.store(spa + 8, 1);
        assert!(!parent.touch(&mut memory, 3).unwrap());
    }

    #[test]
    fn without_paging_nothing_is_paged_out() {
        let mut memory = SystemMemory::new(&[8 << 20], &[], 2 << 20).unwrap();
        let mut parent = Parent::new(&mut memory, 1 << 20, false).unwrap();
        assert_eq!(parent.page_out(&mut memory, 1 << 20).unwrap(), 0);
    }
}

//! A partition in a file, and out of it.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use super::partition::Partition;
use super::wire::{CHUNK, Hello, Last, Message, PageOf, WireError};
use super::{Digest, Host, HostError, PartitionSpec, Stage1};

/// What a saved partition begins with.
const MAGIC: &[u8; 8] = b"SLATVM\r\n";

/// Why a partition was not saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The file.
    #[error("{file}: {error}")]
    File {
        /// Its name.
        file: String,
        /// Why.
        error: WireError,
    },
    /// What is in the file is not what was saved.
    #[error("{file}: {text}")]
    Content {
        /// Its name.
        file: String,
        /// Why.
        text: String,
    },
}

impl Partition {
    /// What a partition is, before its content.
    pub(super) fn hello(&self, host: &str, generation: u64) -> Hello {
        Hello {
            name: self.name.clone(),
            host: host.to_owned(),
            architecture: self.stage1.architecture(),
            generation,
            ranges: self.ranges.clone(),
        }
    }

    /// One of its pages, as it is saved and sent.
    pub(super) fn page(&self, memory: &super::SystemMemory, gpa: u64) -> PageOf {
        let frame = self.locate(gpa).and_then(|(spa, _)| memory.frame(spa));
        let content = frame.filter(|frame| frame.iter().any(|word| *word != 0));
        (gpa, content.map(|content| Box::new(*content)))
    }

    /// The end of its content.
    pub(super) fn last(&self, memory: &super::SystemMemory) -> Last {
        Last {
            vcpu: self.vcpu,
            digest: self.digest(memory),
            translations: self.translations_digest(memory),
        }
    }
}

impl Hello {
    /// The partition that this makes, on node 0.
    pub(super) fn spec(&self) -> PartitionSpec {
        let mut holes = Vec::new();
        for pair in self.ranges.windows(2) {
            let end = pair[0].0.saturating_add(pair[0].1);
            holes.push((end, pair[1].0.saturating_sub(end)));
        }
        PartitionSpec {
            name: self.name.clone(),
            bytes: self.ranges.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes)),
            holes,
            node: 0,
            seed: 0,
        }
    }
}

impl Host {
    /// Makes the partition that a message announces, without content.
    ///
    /// # Errors
    /// Where it does not fit this host.
    pub(super) fn create_from(&mut self, hello: &Hello) -> Result<(), HostError> {
        let wrong = |text: &str| HostError::Partition {
            partition: hello.name.clone(),
            text: text.to_owned(),
        };
        let here = Stage1::of(&self.spec.processor).map_err(|text| wrong(&text))?;
        if here.architecture() != hello.architecture {
            return Err(wrong("its guest is for another architecture than this host's"));
        }
        let spec = hello.spec();
        self.create(&spec)?;
        if self.partition(&hello.name)?.ranges != hello.ranges {
            self.stop(&hello.name)?;
            return Err(wrong("its parts of memory make no partition"));
        }
        Ok(())
    }

    /// Puts pages that were saved or sent.
    ///
    /// # Errors
    /// Where a page is not the partition's, or an overcommitted host has no memory for it.
    pub(super) fn put_pages(&mut self, name: &str, pages: &[PageOf]) -> Result<(), HostError> {
        let (partition, memory) = self.both(name)?;
        for (gpa, content) in pages {
            if !partition.put_page(memory, *gpa, content.as_deref()) {
                return Err(HostError::Partition {
                    partition: name.to_owned(),
                    text: format!("it has no page, or no memory for one, at {gpa:#x}"),
                });
            }
        }
        Ok(())
    }

    /// Takes the end of the content over; says whether everything is what was saved or sent.
    pub(super) fn finish(&mut self, name: &str, last: &Last) -> Result<bool, HostError> {
        let (partition, memory) = self.both(name)?;
        partition.vcpu = last.vcpu;
        // A window that cannot be looked through is no guest of ours, and would take for ever; nor
        // is one whose tables lie where no partition has memory.
        let vcpu = &last.vcpu;
        let fits = vcpu.pages <= 1 << 16
            && vcpu.steps <= u64::MAX / 2
            && vcpu.roots.iter().chain(&vcpu.tables).all(|at| *at <= 4 * super::MAX_BYTES);
        Ok(fits && partition.last(memory) == *last)
    }

    /// Writes a partition to a file, which is there wholly or not at all, and stops it. Returns the
    /// digest of what was saved.
    ///
    /// # Errors
    /// Of the file; the partition goes on then.
    pub fn save(&mut self, name: &str, path: &Path) -> Result<Digest, SaveError> {
        let file = path.display().to_string();
        let failed =
            |error: std::io::Error| SaveError::File { file: file.clone(), error: error.into() };
        let partition = self.partition(name)?;
        let last = partition.last(&self.memory);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut temporary =
            tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(failed)?;
        {
            let mut to = BufWriter::new(temporary.as_file_mut());
            to.write_all(MAGIC).map_err(failed)?;
            Message::Hello(partition.hello(&self.spec.name, 0)).write(&mut to).map_err(failed)?;
            let pages: Vec<u64> = partition.pages().collect();
            for chunk in pages.chunks(CHUNK) {
                let pages: Vec<PageOf> = chunk
                    .iter()
                    .map(|gpa| partition.page(&self.memory, *gpa))
                    .filter(|(_, content)| content.is_some())
                    .collect();
                if !pages.is_empty() {
                    Message::Pages(pages).write(&mut to).map_err(failed)?;
                }
            }
            Message::Last(last).write(&mut to).map_err(failed)?;
            to.flush().map_err(failed)?;
        }
        temporary.as_file().sync_all().map_err(failed)?;
        temporary.persist(path).map_err(|error| failed(error.error))?;
        // The partition stops for good: the file's name has to be on the disk before.
        if cfg!(unix) {
            let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(failed)?;
            folder.sync_all().map_err(failed)?;
        }
        self.stop(name)?;
        Ok(last.digest)
    }

    /// Starts the partition that a file holds. Returns its name.
    ///
    /// # Errors
    /// Of the file, and as [`Host::power_on`]; nothing has changed then.
    pub fn restore(&mut self, path: &Path) -> Result<String, SaveError> {
        let file = path.display().to_string();
        let failed = |error: WireError| SaveError::File { file: file.clone(), error };
        let content = |text: &str| SaveError::Content { file: file.clone(), text: text.to_owned() };
        let mut from = BufReader::new(File::open(path).map_err(|error| failed(error.into()))?);
        let mut magic = [0u8; 8];
        from.read_exact(&mut magic).map_err(|error| failed(error.into()))?;
        if magic != *MAGIC {
            return Err(content("not a saved partition"));
        }
        let Message::Hello(hello) = Message::read(&mut from).map_err(failed)? else {
            return Err(content("it does not say which partition it is"));
        };
        self.create_from(&hello)?;
        let filled = self.fill_from(&hello.name, &mut from, &content, &failed);
        if filled.is_err() {
            self.stop(&hello.name)?;
        }
        filled.map(|()| hello.name)
    }

    fn fill_from(
        &mut self,
        name: &str,
        from: &mut impl Read,
        content: &impl Fn(&str) -> SaveError,
        failed: &impl Fn(WireError) -> SaveError,
    ) -> Result<(), SaveError> {
        loop {
            match Message::read(from).map_err(failed)? {
                Message::Pages(pages) => self.put_pages(name, &pages)?,
                Message::Last(last) if self.finish(name, &last)? => return Ok(()),
                Message::Last(_) => return Err(content("its content is not what was saved")),
                _ => return Err(content("it holds something that is no part of a partition")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::{HOSTS, host, partition};

    #[test]
    fn what_was_saved_is_restored_on_any_host() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.saved");
        let mut first = host("haswell", "kvm-3.0", &[64 << 20]);
        first.power_on(&partition("a", 16 << 20)).unwrap();
        let mut digests = Vec::new();
        first.run("a", 1000).unwrap();
        first.save("a", &file).unwrap();
        assert!(first.partition("a").is_err(), "it stopped");
        for (processor, hypervisor) in HOSTS {
            let mut host = host(processor, hypervisor, &[64 << 20]);
            assert_eq!(host.restore(&file).unwrap(), "a");
            host.run("a", 3000).unwrap();
            digests.push(host.partition("a").unwrap().digest(&host.memory));
        }
        digests.dedup();
        assert_eq!(digests.len(), 1);
        let mut arm = host("cortex-a57", "kvm-3.11", &[64 << 20]);
        assert!(arm.restore(&file).unwrap_err().to_string().contains("architecture"));
    }

    #[test]
    fn a_damaged_file_restores_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.saved");
        let mut one = host("haswell", "kvm-3.0", &[64 << 20]);
        one.power_on(&partition("a", 8 << 20)).unwrap();
        one.run("a", 200).unwrap();
        one.save("a", &file).unwrap();
        let whole = fs::read(&file).unwrap();
        let unused = one.memory.owned(super::super::Owner::Unused);
        for place in (0..whole.len()).step_by(whole.len() / 40) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x10;
            fs::write(&file, &damaged).unwrap();
            if one.restore(&file).is_ok() {
                // The name of the host is all that the digest does not cover.
                assert!(place < 40, "byte {place}");
                let name = one.partitions().next().unwrap().name.clone();
                one.stop(&name).unwrap();
            }
            fs::write(&file, &whole[..place]).unwrap();
            assert!(one.restore(&file).is_err());
            assert_eq!(one.memory.owned(super::super::Owner::Unused), unused);
        }
    }
}

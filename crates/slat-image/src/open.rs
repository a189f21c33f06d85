//! From files to an image: which format it is, and where its memory lies.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::elf;
use crate::error::{OpenError, Problem};
use crate::image::{Image, Machine};
use crate::layout::{Claim, Range, settle};
use crate::mapping;
use crate::zst;

/// How to open images.
///
/// ```no_run
/// let image = slat_image::Options::new().base(0x4000_0000).open("memory.raw.zst")?;
/// # Ok::<(), slat_image::OpenError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    base: Option<u64>,
    decompressed_limit: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options::new()
    }
}

impl Options {
    /// The default of [`decompressed_limit`](Options::decompressed_limit): 16 GiB.
    pub const DECOMPRESSED_LIMIT: u64 = 16 << 30;

    /// A raw image begins at physical address 0, and nothing decompresses to more than
    /// [`DECOMPRESSED_LIMIT`](Options::DECOMPRESSED_LIMIT).
    pub fn new() -> Options {
        Options { base: None, decompressed_limit: Options::DECOMPRESSED_LIMIT }
    }

    /// The physical address of the first byte of a raw image.
    #[must_use]
    pub fn base(mut self, address: u64) -> Options {
        self.base = Some(address);
        self
    }

    /// The most bytes that a compressed image may decompress to, all files together.
    ///
    /// They go to an unnamed file in the temporary directory (`TMPDIR`), where zeros take no room.
    #[must_use]
    pub fn decompressed_limit(mut self, bytes: u64) -> Options {
        self.decompressed_limit = bytes;
        self
    }

    /// Opens the image in one file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no image, or is damaged.
    pub fn open(&self, file: impl AsRef<Path>) -> Result<Image, OpenError> {
        self.open_all(&[Source { file: file.as_ref().to_owned(), address: None }])
    }

    /// Opens the image that `sources` make up together.
    ///
    /// # Errors
    ///
    /// As for [`open`](Options::open); also when there is no source, when two claim the same
    /// address, or when a base is given besides a source's own address.
    pub fn open_all(&self, sources: &[Source]) -> Result<Image, OpenError> {
        let mut files = Vec::with_capacity(sources.len());
        let mut room = self.decompressed_limit;
        for source in sources {
            let file = source.file.as_path();
            let content = map(file).map_err(|problem| problem.of(file))?;
            files.push(self.place(source, content, &mut room)?);
        }
        assemble(files)
    }

    /// Opens an image from the content of a file, `name` being what errors call it.
    ///
    /// # Errors
    ///
    /// As for [`open`](Options::open).
    pub fn open_bytes(&self, name: &str, content: Vec<u8>) -> Result<Image, OpenError> {
        let source = Source { file: PathBuf::from(name), address: None };
        let placed =
            self.place(&source, Bytes::from(content), &mut self.decompressed_limit.clone());
        assemble(vec![placed?])
    }

    /// Finds out what `content` is and where it lies. `room` is what may still be decompressed.
    fn place(&self, source: &Source, content: Bytes, room: &mut u64) -> Result<Placed, OpenError> {
        let file = source.file.clone();
        match self.place_content(source.address, content, room) {
            Ok((ranges, machine)) => Ok(Placed { file, ranges, machine }),
            Err(problem) => Err(problem.of(file)),
        }
    }

    fn place_content(
        &self,
        address: Option<u64>,
        content: Bytes,
        room: &mut u64,
    ) -> Result<(Vec<Range>, Option<Machine>), Problem> {
        if content.is_empty() {
            return Err(Problem::Empty);
        }
        let content = if zst::is_zstd(&content) {
            let content = zst::decompress(&content, *room)?;
            *room -= content.len() as u64;
            content
        } else {
            content
        };
        if content.is_empty() {
            return Err(Problem::Empty);
        }
        if let Some((name, remedy)) = unsupported(&content) {
            return Err(Problem::Unsupported { name, remedy });
        }
        if let (Some(base), Some(address)) = (self.base, address) {
            return Err(Problem::BaseAndAddress { base, address });
        }
        let address = address.or(self.base);

        if elf::is_elf(&content) {
            if let Some(address) = address {
                return Err(Problem::AddressForCore(address));
            }
            let core = elf::parse(&content)?;
            let claims = settle(&content, core.segments)?;
            let ranges = claims.iter().map(|claim| Range::of(&content, claim)).collect();
            return Ok((ranges, Some(Machine::from_elf(core.machine))));
        }
        let claim = Claim { address: address.unwrap_or(0), offset: 0, size: content.len() as u64 };
        if claim.address.checked_add(claim.size - 1).is_none() {
            return Err(Problem::BeyondAddressSpace { base: claim.address, size: claim.size });
        }
        Ok((vec![Range::of(&content, &claim)], None))
    }
}

/// The memory of one file.
struct Placed {
    file: PathBuf,
    ranges: Vec<Range>,
    machine: Option<Machine>,
}

/// One image of the memory of all files.
fn assemble(files: Vec<Placed>) -> Result<Image, OpenError> {
    if files.is_empty() {
        return Err(Problem::Source("no file given: an image needs at least one".into()).of(""));
    }
    let machine = files.iter().find_map(|file| file.machine);
    let mut ranges: Vec<(usize, Range)> = Vec::new();
    for (index, file) in files.iter().enumerate() {
        ranges.extend(file.ranges.iter().map(|range| (index, range.clone())));
    }
    ranges.sort_by_key(|(_, range)| range.start);
    for pair in ranges.windows(2) {
        let [(before, low), (after, high)] = pair else { continue };
        if low.last() >= high.start {
            return Err(Problem::Overlap {
                address: high.start,
                other: files[*before].file.display().to_string(),
                remedy: "give each file the physical address of its first byte (FILE@ADDR)",
            }
            .of(&files[*after].file));
        }
    }
    Ok(Image::new(ranges.into_iter().map(|(_, range)| range).collect(), machine))
}

/// The content of `file`, mapped.
fn map(file: &Path) -> Result<Bytes, Problem> {
    // Before it is opened: opening a pipe would wait for a writer.
    if !std::fs::metadata(file).map_err(Problem::Io)?.is_file() {
        return Err(Problem::NotAFile);
    }
    mapping::map(&File::open(file).map_err(Problem::Io)?).map_err(Problem::Io)
}

/// Formats that would be nonsense if read as raw memory: what `content` is, and what to do about it.
fn unsupported(content: &[u8]) -> Option<(&'static str, &'static str)> {
    const PACKED: &str = "decompress it first, or compress it with zstd instead";
    const DUMP: &str = "convert it to raw memory or an ELF core first";
    let known: [(&[u8], &str, &str); 12] = [
        (b"\x28\xb5\x2f\xfd", "zstd data compressed once more", "decompress it once first"),
        (b"\x1f\x8b\x08", "a gzip file", PACKED),
        (b"\xfd7zXZ\0", "an xz file", PACKED),
        (b"BZh", "a bzip2 file", PACKED),
        (b"\x04\x22\x4d\x18", "an LZ4 file", PACKED),
        (b"PK\x03\x04", "a zip file", PACKED),
        (b"EMiL", "a LiME dump", DUMP),
        (b"LVMA", "an AVML dump", DUMP),
        (b"KDUMP   ", "a compressed kdump file", DUMP),
        (b"PAGEDU", "a Windows crash dump", DUMP),
        (b"QFI\xfb", "a qcow2 disk", DUMP),
        (b"QEVM", "a QEMU migration stream", "dump the memory with QEMU's dump-guest-memory"),
    ];
    known
        .into_iter()
        .find_map(|(magic, name, remedy)| content.starts_with(magic).then_some((name, remedy)))
}

/// A file, and the physical address of its first byte where the user gave one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// The physical address of its first byte.
    pub address: Option<u64>,
}

impl Source {
    /// Parses `FILE`, `FILE@ADDR` or `FILE@ADDR,FILE@ADDR,...`.
    ///
    /// ADDR is hexadecimal with `0x`, else decimal. The name of a file that exists is that file, so
    /// that names with `@` and `,` can be given too.
    ///
    /// ```
    /// use slat_image::Source;
    /// let sources = Source::parse_list("low.raw@0,high.raw@0x100000000".as_ref())?;
    /// assert_eq!(sources[1].file.to_str(), Some("high.raw"));
    /// assert_eq!(sources[1].address, Some(1 << 32));
    /// # Ok::<(), slat_image::OpenError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When a list names a file without its address, or an address is no number.
    pub fn parse_list(text: &OsStr) -> Result<Vec<Source>, OpenError> {
        let whole = || vec![Source { file: text.into(), address: None }];
        let Some(list) = text.to_str() else { return Ok(whole()) };
        if !list.contains('@') || Path::new(list).exists() {
            return Ok(whole());
        }
        let parts: Vec<&str> = list.split(',').collect();
        let complain = |what: String| Err(Problem::Source(what).of(text));
        let mut sources = Vec::with_capacity(parts.len());
        for part in &parts {
            let Some((file, address)) = part.rsplit_once('@') else {
                return complain(format!("'{part}' has no address: a list is FILE@ADDR,FILE@ADDR"));
            };
            let number = match address.strip_prefix("0x").or(address.strip_prefix("0X")) {
                Some(digits) => u64::from_str_radix(digits, 16),
                None => address.parse(),
            };
            let Ok(number) = number else {
                return complain(format!(
                    "no such file, and '{address}' is no address: FILE@ADDR wants 0x... or decimal"
                ));
            };
            if file.is_empty() {
                return complain(format!("'{part}' has no file: FILE@ADDR is wanted"));
            }
            sources.push(Source { file: file.into(), address: Some(number) });
        }
        Ok(sources)
    }
}

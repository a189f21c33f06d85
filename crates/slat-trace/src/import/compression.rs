//! The compressions that traces are stored in, told by their first bytes.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{Cause, ImportError};
use super::input::Input;

/// Memory an xz decoder may ask for: `xz -9` needs 65 MiB, a hostile header can ask for 4 GiB.
const XZ_MEMORY: u64 = 256 << 20;

/// How a file's bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Xz,
    Bzip2,
    Zstd,
}

impl Compression {
    /// Tells the compression from a file's first bytes; `Err` names one that is not read and the remedy.
    fn of(head: &[u8]) -> Result<Compression, &'static str> {
        Ok(match head {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Compression::Bzip2,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            [0x04, 0x22, 0x4d, 0x18, ..] => {
                return Err("lz4 is not read; unpack it first: lz4 -d FILE");
            }
            [0xff, 0x06, 0x00, 0x00, b's', b'N', b'a', b'P', b'p', b'Y', ..] => {
                return Err("snappy is not read; unpack it first: snzip -d FILE");
            }
            _ => Compression::None,
        })
    }
}

/// Counts what is read, so that an error within a compressed file can say where in the file it was met.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Opens a file as the stream of bytes inside its compression, if it has one.
///
/// Concatenated streams (as `cat a.gz b.gz` makes) are read to the last.
///
/// # Errors
///
/// When the file cannot be opened or read, or is packed by a compression that is not read.
pub(crate) fn open(path: &Path) -> Result<Input, ImportError> {
    let io = |error| ImportError::whole(path, Cause::Io(error));
    let mut file = File::open(path).map_err(io)?;
    let mut head = Vec::with_capacity(16);
    file.by_ref().take(16).read_to_end(&mut head).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let compression = Compression::of(&head)
        .map_err(|remedy| ImportError::whole(path, Cause::Refused(remedy.into())))?;
    if compression == Compression::None {
        return Ok(Input::new(path, Box::new(file), None));
    }
    let count = Arc::new(AtomicU64::new(0));
    let packed =
        BufReader::with_capacity(1 << 16, Counted { inner: file, count: Arc::clone(&count) });
    let unpacked: Box<dyn Read + Send> = match compression {
        Compression::None | Compression::Gzip => {
            Box::new(flate2::bufread::MultiGzDecoder::new(packed))
        }
        Compression::Xz => {
            let concatenated = liblzma::stream::CONCATENATED;
            let decoder = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, concatenated)
                .map_err(|error| io(error.into()))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(packed, decoder))
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
        // The decoder's own default refuses windows beyond 128 MiB.
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(packed).map_err(io)?)
        }
    };
    Ok(Input::new(path, unpacked, Some(count)))
}

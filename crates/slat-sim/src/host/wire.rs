//! A partition as bytes: what a saved one is in a file, and what goes over the link of a migration.
//!
//! A message is its kind (one byte), the length of the rest (four bytes, little-endian) and the rest.

use std::io::{self, Read, Write};

use super::digest::Digest;
use super::guest::Vcpu;
use super::spa::{Frame, PAGE};
use super::stage1::Architecture;

/// The version of this format.
pub const VERSION: u32 = 2;
/// Pages of one message.
pub const CHUNK: usize = 64;
/// No message is longer.
const LONGEST: usize = CHUNK * (PAGE as usize + 9) + 16;
/// No name is longer.
const LONGEST_NAME: usize = 64;
/// No partition has more parts.
const MOST_RANGES: usize = 256;

/// What a partition is, before its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Its name.
    pub name: String,
    /// The host that it comes from.
    pub host: String,
    /// What its guest is for.
    pub architecture: Architecture,
    /// Which life of the virtual machine this is.
    pub generation: u64,
    /// Its guest-physical memory: start and size.
    pub ranges: Vec<(u64, u64)>,
}

/// One page: its guest-physical address and content, `None` for zeros.
pub type PageOf = (u64, Option<Box<Frame>>);

/// The end of a partition's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Last {
    /// Its registers.
    pub vcpu: Vcpu,
    /// The digest of registers and memory.
    pub digest: Digest,
    /// The digest of its guest's translations.
    pub translations: u64,
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// What follows.
    Hello(Hello),
    /// The destination has memory for it.
    Accept,
    /// The destination does not take it, or what it got is not right.
    Refuse(String),
    /// Pages.
    Pages(Vec<PageOf>),
    /// A round of copying has ended.
    RoundEnd(u32),
    /// Everything was sent.
    Last(Last),
    /// The destination has everything, and its digest is right.
    Ready,
    /// The source has given the lock up.
    Go,
    /// The destination has the lock, and has recorded that it runs the partition.
    Running,
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The link, or the file.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not a message.
    #[error("not a message of this format: {0}")]
    Format(&'static str),
    /// Another message was due.
    #[error("{due} was due, and {got} came")]
    Unexpected {
        /// What was due.
        due: &'static str,
        /// What came.
        got: &'static str,
    },
}

impl WireError {
    /// Whether the other side is gone, rather than wrong.
    pub fn is_gone(&self) -> bool {
        matches!(self, WireError::Io(_))
    }
}

impl Message {
    /// Its name in errors.
    pub const fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "hello",
            Message::Accept => "accept",
            Message::Refuse(_) => "refuse",
            Message::Pages(_) => "pages",
            Message::RoundEnd(_) => "round end",
            Message::Last(_) => "last",
            Message::Ready => "ready",
            Message::Go => "go",
            Message::Running => "running",
        }
    }

    /// Writes the message.
    ///
    /// # Errors
    /// Of the writer.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut body = Vec::new();
        let kind: u8 = match self {
            Message::Hello(hello) => {
                body.extend(VERSION.to_le_bytes());
                for text in [&hello.name, &hello.host] {
                    put_text(&mut body, text);
                }
                body.push(hello.architecture as u8);
                body.extend(hello.generation.to_le_bytes());
                body.extend((hello.ranges.len() as u32).to_le_bytes());
                for (start, bytes) in &hello.ranges {
                    body.extend(start.to_le_bytes());
                    body.extend(bytes.to_le_bytes());
                }
                1
            }
            Message::Accept => 2,
            Message::Refuse(text) => {
                body.extend(text.as_bytes());
                3
            }
            Message::Pages(pages) => {
                for (gpa, content) in pages {
                    body.extend(gpa.to_le_bytes());
                    body.push(u8::from(content.is_some()));
                    if let Some(content) = content {
                        body.extend(content.iter().flat_map(|word| word.to_le_bytes()));
                    }
                }
                4
            }
            Message::RoundEnd(round) => {
                body.extend(round.to_le_bytes());
                5
            }
            Message::Last(last) => {
                body.extend(last.vcpu.words().iter().flat_map(|word| word.to_le_bytes()));
                body.extend(last.digest.0.to_le_bytes());
                body.extend(last.translations.to_le_bytes());
                6
            }
            Message::Ready => 7,
            Message::Go => 8,
            Message::Running => 9,
        };
        let mut all = Vec::with_capacity(body.len() + 5);
        all.push(kind);
        all.extend((body.len() as u32).to_le_bytes());
        all.extend(body);
        to.write_all(&all)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// Of the reader, and where there is no message.
    pub fn read(from: &mut impl Read) -> Result<Message, WireError> {
        let mut head = [0u8; 5];
        from.read_exact(&mut head)?;
        let [kind, a, b, c, d] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > LONGEST {
            return Err(WireError::Format("it is too long"));
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        let mut body = Body(&body);
        let message = match kind {
            1 => {
                if body.u32()? != VERSION {
                    return Err(WireError::Format("it is of another version"));
                }
                let (name, host) = (body.text()?, body.text()?);
                let architecture = match body.u8()? {
                    0 => Architecture::X86,
                    1 => Architecture::Arm64,
                    2 => Architecture::Arm32,
                    _ => return Err(WireError::Format("its guest is of an unknown architecture")),
                };
                let generation = body.u64()?;
                let count = body.u32()? as usize;
                if count > MOST_RANGES {
                    return Err(WireError::Format("too many parts of memory"));
                }
                let mut ranges = Vec::new();
                for _ in 0..count {
                    ranges.push((body.u64()?, body.u64()?));
                }
                Message::Hello(Hello { name, host, architecture, generation, ranges })
            }
            2 => Message::Accept,
            3 => Message::Refuse(String::from_utf8_lossy(std::mem::take(&mut body.0)).into_owned()),
            4 => {
                let mut pages = Vec::new();
                while !body.0.is_empty() {
                    let gpa = body.u64()?;
                    let content = match body.u8()? {
                        0 => None,
                        1 => {
                            let mut frame: Box<Frame> = Box::new([0; 512]);
                            for word in frame.iter_mut() {
                                *word = body.u64()?;
                            }
                            Some(frame)
                        }
                        _ => return Err(WireError::Format("a page is neither zeros nor content")),
                    };
                    pages.push((gpa, content));
                }
                Message::Pages(pages)
            }
            5 => Message::RoundEnd(body.u32()?),
            6 => {
                let mut words = [0u64; 8];
                for word in &mut words {
                    *word = body.u64()?;
                }
                let digest = u128::from(body.u64()?) | u128::from(body.u64()?) << 64;
                Message::Last(Last {
                    vcpu: Vcpu::from_words(words),
                    digest: Digest(digest),
                    translations: body.u64()?,
                })
            }
            7 => Message::Ready,
            8 => Message::Go,
            9 => Message::Running,
            _ => return Err(WireError::Format("its kind is unknown")),
        };
        if !body.0.is_empty() {
            return Err(WireError::Format("it is longer than its kind"));
        }
        Ok(message)
    }
}

fn put_text(body: &mut Vec<u8>, text: &str) {
    let text = &text.as_bytes()[..text.len().min(LONGEST_NAME)];
    body.push(text.len() as u8);
    body.extend(text);
}

/// What is left of a message.
struct Body<'a>(&'a [u8]);

impl Body<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some((head, rest)) = self.0.split_first_chunk::<N>() else {
            return Err(WireError::Format("it ends early"));
        };
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, WireError> {
        let length = usize::from(self.u8()?);
        let Some((text, rest)) = self.0.split_at_checked(length) else {
            return Err(WireError::Format("it ends early"));
        };
        self.0 = rest;
        let text = std::str::from_utf8(text);
        text.map(str::to_owned).map_err(|_| WireError::Format("a name is not text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(message: Message) {
        let mut bytes = Vec::new();
        message.write(&mut bytes).unwrap();
        assert_eq!(Message::read(&mut bytes.as_slice()).unwrap(), message);
        for cut in 0..bytes.len().min(100) {
            assert!(Message::read(&mut &bytes[..cut]).is_err(), "{cut} bytes of it");
        }
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        round_trip(Message::Hello(Hello {
            name: "web".to_owned(),
            host: "a".to_owned(),
            architecture: Architecture::Arm32,
            generation: 7,
            ranges: vec![(0, 8 << 20), (16 << 20, 4096)],
        }));
        round_trip(Message::Pages(vec![(4096, None), (8192, Some(Box::new([5; 512])))]));
        round_trip(Message::Refuse("no".to_owned()));
        round_trip(Message::RoundEnd(3));
        let vcpu = Vcpu { roots: [1, 2], tables: [3, 4], pages: 5, active: 1, random: 6, steps: 7 };
        round_trip(Message::Last(Last { vcpu, digest: Digest(1 << 90), translations: 9 }));
        for message in [Message::Accept, Message::Ready, Message::Go, Message::Running] {
            round_trip(message);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Message::read(&mut bytes.as_slice());
        }
    }
}

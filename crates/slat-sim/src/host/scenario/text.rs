//! The words of a scenario's file.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

/// A number of bytes: `4096`, `"64K"`, `"16M"`, `"1G"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bytes(pub(super) u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        from.deserialize_any(Sized { what: "a size such as \"16M\"" }).map(Bytes)
    }
}

/// An address: a number, or `"0x40000000"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Address(pub(super) u64);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Address, D::Error> {
        from.deserialize_any(Sized { what: "an address such as \"0x40000000\"" }).map(Address)
    }
}

struct Sized {
    what: &'static str,
}

impl Visitor<'_> for Sized {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
        u64::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        let value = if let Some(digits) = text.strip_prefix("0x") {
            u64::from_str_radix(&digits.replace('_', ""), 16).ok()
        } else {
            let (digits, shift) = match text.as_bytes().last() {
                Some(b'K') => (&text[..text.len() - 1], 10),
                Some(b'M') => (&text[..text.len() - 1], 20),
                Some(b'G') => (&text[..text.len() - 1], 30),
                _ => (text, 0),
            };
            let number = digits.parse::<u64>().ok();
            number.and_then(|number| number.checked_mul(1 << shift))
        };
        value.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScenarioText {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) host: Vec<Spanned<HostText>>,
    #[serde(default)]
    pub(super) step: Vec<Spanned<StepText>>,
}

/// `[[host]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostText {
    pub(super) name: String,
    pub(super) processor: Spanned<String>,
    pub(super) hypervisor: Spanned<String>,
    pub(super) memory: Spanned<Vec<Bytes>>,
    #[serde(default)]
    pub(super) holes: Vec<HoleText>,
    pub(super) tables: Option<Bytes>,
    pub(super) parent: Option<Bytes>,
    #[serde(default)]
    pub(super) parent_paging: bool,
    #[serde(default)]
    pub(super) policies: PoliciesText,
}

/// A stretch without memory.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HoleText {
    pub(super) start: Address,
    pub(super) bytes: Bytes,
}

/// `policies` of a host.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PoliciesText {
    pub(super) overcommit: bool,
    pub(super) balloon: bool,
    pub(super) share: bool,
}

/// What a step does.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Word {
    Start,
    Stop,
    Run,
    Follow,
    Save,
    Restore,
    Parent,
    Balloon,
    Share,
    Migrate,
    RealMode,
}

/// `[[step]]`: which fields a step takes is checked when it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepText {
    pub(super) r#do: Word,
    pub(super) host: Option<Spanned<String>>,
    pub(super) partition: Option<Spanned<String>>,
    pub(super) memory: Option<Spanned<Bytes>>,
    pub(super) holes: Option<Vec<HoleText>>,
    pub(super) node: Option<Spanned<usize>>,
    pub(super) seed: Option<Spanned<u64>>,
    pub(super) count: Option<Spanned<u32>>,
    pub(super) steps: Option<Spanned<u64>>,
    pub(super) address: Option<Spanned<Address>>,
    pub(super) pages: Option<Spanned<u64>>,
    pub(super) to: Option<Spanned<String>>,
    pub(super) steps_per_chunk: Option<Spanned<u64>>,
    pub(super) most_rounds: Option<Spanned<u32>>,
    pub(super) pause_at: Option<Spanned<usize>>,
    #[serde(default)]
    pub(super) refused: bool,
}

//! What is wrong with a preset, and where.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A preset that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PresetError {
    /// Not this file's format; the text names line and field.
    #[error("{file}: {error}")]
    Toml {
        /// The file.
        file: String,
        /// What is wrong with it.
        error: Box<toml::de::Error>,
    },
    /// A value that no processor has.
    #[error("{file}: line {line}: {field}: {text}")]
    Value {
        /// The file.
        file: String,
        /// Where the field stands, from 1.
        line: usize,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        text: String,
    },
    /// No preset of this name.
    #[error("no {kind} preset `{name}`; there are {choices}, or give a TOML file")]
    Unknown {
        /// Of what: `processor`, `hypervisor`.
        kind: &'static str,
        /// The name that was asked for.
        name: String,
        /// All names.
        choices: String,
    },
}

/// Reads a preset's text, before its values are checked.
pub(crate) fn from_toml<T: serde::de::DeserializeOwned>(
    file: &str,
    text: &str,
) -> Result<T, PresetError> {
    toml::from_str(text)
        .map_err(|error| PresetError::Toml { file: file.to_owned(), error: Box::new(error) })
}

/// No preset of this name, but these.
pub(crate) fn unknown(
    kind: &'static str,
    name: &str,
    names: impl Iterator<Item = &'static str>,
) -> PresetError {
    let choices = names.collect::<Vec<_>>().join(", ");
    PresetError::Unknown { kind, name: name.to_owned(), choices }
}

impl PresetError {
    /// A value that is not possible; `text` is the file's, in which the field's line is found.
    pub(crate) fn value(file: &str, text: &str, field: &'static str, what: String) -> PresetError {
        let line = line_of(text, field).unwrap_or(1);
        PresetError::Value { file: file.to_owned(), line, field, text: what }
    }
}

/// The line, from 1, of a field such as `tlb.second`, or of the table that should have it.
fn line_of(text: &str, field: &str) -> Option<usize> {
    let parsed = DeTable::parse(text).ok()?;
    let mut table = parsed.get_ref();
    let mut at = 0;
    for part in field.split('.') {
        let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref().as_ref() == part)
        else {
            break;
        };
        at = Spanned::span(key).start;
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    Some(1 + text[..at].matches('\n').count())
}

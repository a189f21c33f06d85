//! What of a workload can be chosen, and reading the choice.

use super::GeneratedError;

/// A parameter of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in `gen:NAME,key=value`.
    pub key: &'static str,
    /// What it is where nothing is chosen.
    pub default: u64,
    /// The least and the greatest value.
    pub range: (u64, u64),
    /// What it means, with its unit, and where the default comes from.
    pub about: &'static str,
}

/// A parameter.
pub const fn parameter(
    key: &'static str,
    default: u64,
    range: (u64, u64),
    about: &'static str,
) -> Parameter {
    Parameter { key, default, range, about }
}

/// What every workload has beside its own.
pub const COMMON: &[Parameter] = &[
    parameter("seed", 1, (0, u64::MAX), "decides what is left to chance"),
    parameter("memory", 1024, (128, 32_768), "MiB of guest memory; too little makes it swap"),
];

/// Values by parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values(Vec<(&'static str, u64)>);

impl Values {
    /// The value of a parameter that the workload has.
    pub fn get(&self, key: &str) -> u64 {
        self.0.iter().find(|(name, _)| *name == key).map_or(0, |&(_, value)| value)
    }

    /// All, in the order of their parameters.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Reads `key=value` after `key=value` over the defaults.
    pub(super) fn parse<'a>(
        parameters: &[Parameter],
        choices: impl Iterator<Item = &'a str>,
    ) -> Result<Values, GeneratedError> {
        let mut values: Vec<(&'static str, u64)> =
            parameters.iter().map(|parameter| (parameter.key, parameter.default)).collect();
        let mut given = 0u64;
        for choice in choices {
            let Some((key, text)) = choice.split_once('=') else {
                return Err(GeneratedError::NoValue { text: choice.to_owned() });
            };
            let Some(nth) = parameters.iter().position(|parameter| parameter.key == key) else {
                let choices: Vec<&str> = parameters.iter().map(|p| p.key).collect();
                return Err(GeneratedError::NoParameter {
                    key: key.to_owned(),
                    choices: choices.join(", "),
                });
            };
            if given & 1 << nth != 0 {
                return Err(GeneratedError::Twice { key: parameters[nth].key });
            }
            given |= 1 << nth;
            let (low, high) = parameters[nth].range;
            let value = number(text).filter(|value| (low..=high).contains(value));
            let Some(value) = value else {
                return Err(GeneratedError::Value {
                    key: parameters[nth].key,
                    text: text.to_owned(),
                    low,
                    high,
                });
            };
            values[nth].1 = value;
        }
        Ok(Values(values))
    }
}

/// A decimal number, `k` or `M` behind it for thousands and millions.
pub fn number(text: &str) -> Option<u64> {
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => match text.strip_suffix('M') {
            Some(digits) => (digits, 1_000_000),
            None => (text, 1),
        },
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

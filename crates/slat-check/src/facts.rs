//! The parsers: each takes the text of one source, whatever it holds, and returns what it says.
//! None of them fails or panics; what makes no sense is left out.

pub(crate) mod cpuid;
pub(crate) mod cpuinfo;
pub(crate) mod kernel_log;
pub(crate) mod kvm;

/// A kernel module's boolean parameter: `Y`/`N` today, `1`/`0` before Linux 3.x.
pub(crate) fn parameter(text: &str) -> Option<bool> {
    match text.trim() {
        "Y" | "y" | "1" => Some(true),
        "N" | "n" | "0" => Some(false),
        _ => None,
    }
}

/// A number as the kernel and this crate print it: decimal, or hexadecimal after `0x`.
pub(crate) fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    // from_str_radix takes a sign, the kernel prints none.
    if digits.starts_with(['+', '-']) { None } else { u64::from_str_radix(digits, radix).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_old_and_new() {
        assert_eq!(parameter("Y\n"), Some(true));
        assert_eq!(parameter("0\n"), Some(false));
        assert_eq!(parameter("maybe"), None);
        assert_eq!(parameter(""), None);
    }

    #[test]
    fn numbers_have_no_sign() {
        assert_eq!(number("0x1F"), Some(31));
        assert_eq!(number(" 12 "), Some(12));
        assert_eq!(number("0x+1"), None);
        assert_eq!(number("-1"), None);
        assert_eq!(number(""), None);
    }
}

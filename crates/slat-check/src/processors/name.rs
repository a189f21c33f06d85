//! Names as `/proc/cpuinfo` and shops spell them, brought to one form.

/// The words of a name that tell processors apart, in lower case.
///
/// `Intel(R) Core(TM)2 Duo CPU     E8400  @ 3.00GHz` becomes `core 2 duo e8400`.
pub(super) fn words(name: &str) -> Vec<String> {
    /// Real names have 48 characters; more is not a name.
    const MOST: usize = 200;
    let mut text: String = name.chars().take(MOST).flat_map(char::to_lowercase).collect();
    for mark in ["(r)", "(tm)", "(c)", "®", "™"] {
        text = text.replace(mark, " ");
    }
    // What follows is the clock; shops write "3.4GHz" without the @ too.
    if let Some(at) = text.find('@') {
        text.truncate(at);
    }
    let mut words = Vec::new();
    for word in text.split(|c: char| !c.is_alphanumeric() && c != '.' && c != '+') {
        let word = word.trim_matches('.');
        let clock = (word.ends_with("ghz") || word.ends_with("mhz"))
            && word.starts_with(|c: char| c.is_ascii_digit());
        let says_nothing = matches!(
            word,
            "" | "intel"
                | "amd"
                | "genuine"
                | "authentic"
                | "arm"
                | "cpu"
                | "processor"
                | "apu"
                | "the"
                | "series"
        );
        if clock || says_nothing {
            continue;
        }
        match word.strip_prefix("core2") {
            Some(rest) => {
                words.extend(["core".to_string(), "2".to_string()]);
                words.extend((!rest.is_empty()).then(|| rest.to_string()));
            }
            None => words.push(word.to_string()),
        }
    }
    words
}

/// Whether the pattern's words stand in the name next to each other, in that order.
///
/// In a pattern `#` is a digit, and `*` at the end of a word is anything that does not start with a
/// digit, nothing included: `i7 9##*` fits `i7 920` and `i7 980x`, but not `i7 9700k`. A word that is `^`
/// stands for the start of the name.
pub(super) fn fits(words: &[String], pattern: &str) -> bool {
    let mut pattern: Vec<&str> = pattern.split(' ').collect();
    let at_start = pattern.first() == Some(&"^");
    if at_start {
        pattern.remove(0);
    }
    let windows = words.windows(pattern.len().max(1));
    let fits = |window: &[String]| {
        window.iter().zip(&pattern).all(|(word, pattern)| word_fits(word, pattern))
    };
    if at_start { windows.take(1).any(fits) } else { windows.into_iter().any(fits) }
}

fn word_fits(word: &str, pattern: &str) -> bool {
    let mut letters = word.chars();
    for expected in pattern.chars() {
        if expected == '*' {
            return !letters.next().is_some_and(|next| next.is_ascii_digit());
        }
        let fits = match letters.next() {
            Some(letter) if expected == '#' => letter.is_ascii_digit(),
            Some(letter) => letter == expected,
            None => false,
        };
        if !fits {
            return false;
        }
    }
    letters.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_to_one_form() {
        for (name, form) in [
            ("Intel(R) Core(TM)2 Duo CPU     E8400  @ 3.00GHz", "core 2 duo e8400"),
            ("Core 2 Duo E8400", "core 2 duo e8400"),
            ("Core2Duo E8400", "core 2 duo e8400"),
            ("Intel(R) Core(TM) i7-2600K CPU @ 3.40GHz", "core i7 2600k"),
            ("Quad-Core AMD Opteron(tm) Processor 2350", "quad core opteron 2350"),
            ("AMD Ryzen 5 3600 6-Core Processor", "ryzen 5 3600 6 core"),
            ("Intel® Core™ i5-750 2.66 GHz", "core i5 750 2.66 ghz"),
            ("i5-750 2.66GHz", "i5 750"),
            ("12th Gen Intel(R) Core(TM) i7-12700K", "12th gen core i7 12700k"),
            ("", ""),
            ("@@@", ""),
        ] {
            assert_eq!(words(name).join(" "), form, "{name}");
        }
    }

    #[test]
    fn patterns_do_not_reach_into_longer_numbers() {
        let fits = |name: &str, pattern: &str| super::fits(&words(name), pattern);
        assert!(fits("i7 920", "i7 9##*"));
        assert!(fits("Core i7-980X", "i7 9##*"));
        assert!(!fits("Core i7-9700K", "i7 9##*"));
        assert!(!fits("", "i7 9##*"));
        assert!(fits("N100", "^ n100"));
        assert!(!fits("Pentium N100", "^ n100"));
        assert!(!fits("i7", "i7 9##*"));
    }
}

//! Mutants that change nothing that the manuals speak of, each with the reason.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::mutant::Mutant;

/// Why a mutant makes no difference.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Explanation {
    file: String,
    change: String,
    /// The line that it makes, which tells it from others of the same file that change the same.
    makes: Option<String>,
    /// The reason.
    pub(super) why: String,
}

impl Explanation {
    fn is_of(&self, mutant: &Mutant, text: &str) -> bool {
        self.file == mutant.file
            && self.change == mutant.change()
            && (self.makes.is_none() || self.makes == mutant.makes(text))
    }
}

/// The list of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Explained {
    #[serde(default)]
    mutant: Vec<Explanation>,
}

impl Explained {
    /// Reads the list.
    pub(super) fn read(path: &Path) -> anyhow::Result<Explained> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let list: Explained =
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        for explanation in &list.mutant {
            ensure!(
                !explanation.why.trim().is_empty(),
                "{}: {} has no reason",
                path.display(),
                explanation.change
            );
        }
        Ok(list)
    }

    /// The explanation of a mutant in a repository.
    pub(super) fn of(&self, mutant: &Mutant, top: &Path) -> anyhow::Result<Option<&Explanation>> {
        let text = source(mutant, top)?;
        Ok(self.mutant.iter().find(|explanation| explanation.is_of(mutant, &text)))
    }

    /// Explanations that fit none of these mutants, or more than one.
    pub(super) fn unfit(&self, mutants: &[Mutant], top: &Path) -> anyhow::Result<Vec<String>> {
        let mut unfit = Vec::new();
        for explanation in &self.mutant {
            let mut fitting = 0;
            for mutant in mutants.iter().filter(|mutant| mutant.file == explanation.file) {
                fitting += usize::from(explanation.is_of(mutant, &source(mutant, top)?));
            }
            if fitting != 1 {
                let Explanation { file, change, .. } = explanation;
                unfit.push(format!("{file}: {change}: fits {fitting} mutants"));
            }
        }
        Ok(unfit)
    }
}

fn source(mutant: &Mutant, top: &Path) -> anyhow::Result<String> {
    let path = top.join(&mutant.file);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutants::mutant::tests::{TEXT, mutant};

    fn explained(makes: &str) -> Explained {
        let list = format!(
            "[[mutant]]\nfile = \"f.rs\"\nchange = \"replace | with ^ in f\"\n{makes}why = \"no\"\n"
        );
        toml::from_str(&list).unwrap()
    }

    #[test]
    fn an_explanation_is_of_one_mutant() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("f.rs"), TEXT).unwrap();
        let mutants = [mutant(8), mutant(13), mutant(17)];
        let second = explained("makes = \"(a | b) ^ a | 1\"\n");
        let fits = mutants.each_ref().map(|m| second.of(m, folder.path()).unwrap().is_some());
        assert_eq!(fits, [false, true, false]);
        assert!(second.unfit(&mutants, folder.path()).unwrap().is_empty());
        // Of a mutant that is gone, and of several.
        assert_eq!(second.unfit(&mutants[..1], folder.path()).unwrap().len(), 1);
        assert_eq!(explained("").unfit(&mutants, folder.path()).unwrap().len(), 1);
    }

    #[test]
    fn every_explanation_has_a_reason() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("explained-mutants.toml");
        Explained::read(&path).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let without = folder.path().join("list.toml");
        std::fs::write(&without, "[[mutant]]\nfile = \"f\"\nchange = \"c\"\nwhy = \" \"\n")
            .unwrap();
        assert!(Explained::read(&without).is_err());
    }
}

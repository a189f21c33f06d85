//! Every console sample of the README and the book is run.

use std::path::Path;

#[test]
fn console_samples() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // Samples name files relative to the root of the repository.
    std::env::set_current_dir(&root).expect("the repository is there");
    trycmd::TestCases::new()
        // As wide as without a terminal.
        .env("COLUMNS", "")
        .case("README.md")
        .case("docs/src/*.md")
        .case("docs/src/slat/*.md")
        .run();
}

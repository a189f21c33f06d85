//! Fetching packages with `apt-get` into a folder, without changing the system.
//!
//! All state of apt (sources, lists, archives) is ours for the time of the call, so that no root is
//! needed, the machine's own package state stays as it is, and a foreign architecture or the
//! `-backports` sibling of a release can be read without configuring it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Arch, Error, Result, io};

const REMEDY: &str = "fetching needs a Debian-like system; elsewhere install the program yourself";

/// Runs a command and returns what it wrote to its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let text = format!("{command:?}");
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| Error::Run { program, error, remedy: REMEDY.into() })?;
    if !output.status.success() {
        let all = String::from_utf8_lossy(&output.stderr).into_owned();
        let tail: Vec<&str> = all.lines().rev().take(4).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("; ");
        return Err(Error::Failed { command: text, output: tail });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One archive that this machine's apt is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Archive {
    uri: String,
    release: String,
    codename: String,
    component: String,
    signed_by: Option<String>,
}

impl Archive {
    fn line(&self, release: &str) -> String {
        const DEBIAN: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let key = self.signed_by.as_deref().or(Path::new(DEBIAN).exists().then_some(DEBIAN));
        let option = key.map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
        format!("deb {option}{} {release} {}\n", self.uri, self.component)
    }
}

fn parse_archives(text: &str) -> Vec<Archive> {
    let mut found: Vec<Archive> = Vec::new();
    for line in text.lines() {
        // A field that apt does not know stays as its own name in `$(...)`.
        let known =
            |field: &str| (!field.is_empty() && !field.contains("$(")).then(|| field.into());
        let fields: Vec<&str> = line.split('|').collect();
        let [created, uri, release, codename, component, signed_by] = fields[..] else { continue };
        let (Some(uri), Some(release), Some(component)) =
            (known(uri), known(release), known(component))
        else {
            continue;
        };
        if created != "Packages" {
            continue;
        }
        let codename = known(codename).unwrap_or_else(|| String::clone(&release));
        let archive = Archive { uri, release, codename, component, signed_by: known(signed_by) };
        if !found.contains(&archive) {
            found.push(archive);
        }
    }
    found
}

/// A private apt: its own sources, lists and archives, under a scratch folder.
pub(crate) struct Apt {
    place: tempfile::TempDir,
    options: Vec<OsString>,
    archives: Vec<Archive>,
}

impl Apt {
    /// Reads this machine's archives and updates private package lists of them for `arch`.
    ///
    /// For a foreign architecture no package counts as installed.
    pub(crate) fn new(arch: Arch) -> Result<Self> {
        let format = "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)|$(SIGNED_BY)";
        let text = run(Command::new("apt-get").args(["indextargets", "--format", format]))?;
        let archives: Vec<Archive> =
            parse_archives(&text).into_iter().filter(|a| a.component == "main").collect();
        if archives.is_empty() {
            return Err(Error::Failed {
                command: "apt-get indextargets".into(),
                output: "this machine's apt has no archive with a component `main`".into(),
            });
        }
        let place = tempfile::tempdir().map_err(io(std::env::temp_dir()))?;
        let root = place.path();
        for folder in ["lists/partial", "cache/archives/partial", "preferences.d"] {
            fs::create_dir_all(root.join(folder)).map_err(io(root))?;
        }
        let mut options: Vec<OsString> = Vec::new();
        let mut set = |name: &str, value: &Path| {
            options.push("-o".into());
            let mut option = OsString::from(format!("{name}="));
            option.push(value);
            options.push(option);
        };
        set("Dir::Etc::sourcelist", &root.join("sources.list"));
        set("Dir::Etc::sourceparts", Path::new("/dev/null"));
        set("Dir::State::Lists", &root.join("lists"));
        set("Dir::Cache", &root.join("cache"));
        set("Debug::NoLocking", Path::new("1"));
        set("APT::Sandbox::User", Path::new("root"));
        set("Acquire::Languages", Path::new("none"));
        if Arch::host() != Some(arch) {
            set("APT::Architecture", Path::new(arch.debian()));
            set("APT::Architectures", Path::new(arch.debian()));
            set("Dir::State::status", Path::new("/dev/null"));
        }
        let apt = Self { place, options, archives };
        let own: String = apt.archives.iter().map(|a| a.line(&a.release)).collect();
        apt.write_sources(&own)?;
        Ok(apt)
    }

    fn write_sources(&self, text: &str) -> Result<()> {
        let path = self.place.path().join("sources.list");
        fs::write(&path, text).map_err(io(path))?;
        run(self.command("apt-get").arg("update")).map(drop)
    }

    /// Adds the `-backports` sibling of the main archive and returns its release name.
    pub(crate) fn add_backports(&self) -> Result<String> {
        // The plain archive is the one whose release is its codename, without `-updates` and such.
        let main = self.archives.iter().find(|a| !a.codename.contains('-'));
        let main = main.unwrap_or(&self.archives[0]);
        let backports = format!("{}-backports", main.codename);
        let own: String = self.archives.iter().map(|a| a.line(&a.release)).collect();
        self.write_sources(&format!("{own}{}", main.line(&backports)))?;
        Ok(backports)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// The version that would be installed of `package`.
    pub(crate) fn candidate(&self, package: &str) -> Result<Option<String>> {
        let text = run(self.command("apt-cache").args(["policy", package]))?;
        let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        Ok(version.filter(|v| *v != "(none)").map(Into::into))
    }

    /// The packages that `package` depends on directly, by name.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = run(self.command("apt-cache").args(["depends", package]))?;
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(Into::into).collect())
    }

    /// Fetches just `packages` and unpacks them under `root`.
    pub(crate) fn fetch(&self, packages: &[&str], root: &Path) -> Result<()> {
        let into = self.place.path().join("debs");
        fs::create_dir_all(&into).map_err(io(&into))?;
        run(self.command("apt-get").arg("download").args(packages).current_dir(&into))?;
        unpack_all(&into, root)
    }

    /// Fetches `packages` with all that they depend on and this machine lacks, and unpacks them
    /// under `root`. `release` is the release to prefer.
    pub(crate) fn fetch_closure(
        &self,
        packages: &[&str],
        release: Option<&str>,
        root: &Path,
    ) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["install", "--download-only", "--reinstall", "--no-install-recommends"]);
        command.arg("-y").args(release.map(|release| format!("--target-release={release}")));
        run(command.args(packages))?;
        unpack_all(&self.place.path().join("cache/archives"), root)
    }
}

fn unpack_all(folder: &Path, root: &Path) -> Result<()> {
    let mut debs: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(io(folder))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .collect();
    debs.sort();
    for deb in &debs {
        run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(root))?;
        fs::remove_file(deb).map_err(io(deb))?;
    }
    Ok(())
}

/// Installs `packages` into the system; needs root.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let attempt = || {
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "--no-install-recommends"]).args(packages);
        run(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // A machine whose lists were never read or are old finds nothing at first.
    if attempt().is_err() {
        run(Command::new("apt-get").arg("update"))?;
        attempt()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_read_once_each_and_unknown_fields_stay_empty() {
        let text = "Packages|http://mirror.test/debian/|bookworm|bookworm|main|$(SIGNED_BY)\n\
            Packages|http://mirror.test/debian/|bookworm|bookworm|main|$(SIGNED_BY)\n\
            DEP-11|http://mirror.test/debian/|bookworm|bookworm|main|$(SIGNED_BY)\n\
            Packages|http://mirror.test/debian/|stable-updates|bookworm-updates|main|/k.gpg\n\
            nonsense\n";
        let archives = parse_archives(text);
        assert_eq!(archives.len(), 2);
        assert_eq!(archives[0].signed_by, None);
        assert_eq!(archives[1].signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(
            archives[1].line("x"),
            "deb [signed-by=/k.gpg] http://mirror.test/debian/ x main\n"
        );
    }

    #[test]
    fn a_failing_command_says_what_it_ran_and_wrote() {
        let error = run(Command::new("sh").args(["-c", "echo gone >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit 3") && text.contains("gone"), "{text}");
        let error = run(&mut Command::new("slat-no-such-program")).unwrap_err();
        assert!(matches!(error, Error::Run { .. }), "{error}");
    }
}

//! All that a recording of one architecture needs, found or fetched.

use std::path::PathBuf;

use crate::guest::{find_busybox, find_kernel};
use crate::{
    Arch, Cache, Error, Kernel, Qemu, Result, busybox, find_or_build_recorder,
    find_or_fetch_qemu10, find_qemu10, find_recorder, kernel,
};

/// The programs and files that a recording is made with.
#[derive(Clone, Debug)]
pub struct Kit {
    /// QEMU 10 or later.
    pub qemu: Qemu,
    /// The library that QEMU loads.
    pub recorder: PathBuf,
    /// What a minimal Linux guest is made of; None for a guest of the user's own.
    pub linux: Option<Linux>,
}

/// What a minimal Linux guest is made of.
#[derive(Clone, Debug)]
pub struct Linux {
    /// The kernel.
    pub kernel: Kernel,
    /// A static busybox.
    pub busybox: PathBuf,
}

impl Kit {
    /// What is there already; nothing is fetched or built. `linux` says whether the guest is to be
    /// the minimal Linux.
    ///
    /// # Errors
    ///
    /// [`Error::NotSetUp`] with all that is missing.
    pub fn find(cache: &Cache, arch: Arch, linux: bool) -> Result<Self> {
        let qemu = find_qemu10(cache, arch);
        let recorder = find_recorder();
        let kernel = find_kernel(cache, arch).filter(|_| linux);
        let busybox = find_busybox(cache, arch).filter(|_| linux);
        let all = [
            (qemu.is_none(), "QEMU 10 or later"),
            (linux && kernel.is_none(), "a kernel"),
            (linux && busybox.is_none(), "a static busybox"),
            (recorder.is_none(), "the recorder"),
        ];
        let (Some(qemu), Some(recorder), false) =
            (qemu, recorder, linux && (kernel.is_none() || busybox.is_none()))
        else {
            let missing = all.into_iter().filter(|part| part.0).map(|part| part.1);
            return Err(Error::NotSetUp { arch, missing: missing.collect::<Vec<_>>().join(", ") });
        };
        let linux = kernel.zip(busybox).map(|(kernel, busybox)| Linux { kernel, busybox });
        Ok(Self { qemu, recorder, linux })
    }

    /// Finds, fetches into the cache or builds what a recording in the minimal Linux needs.
    ///
    /// # Errors
    ///
    /// Where something can be neither found nor fetched nor built.
    pub fn fetch(cache: &Cache, arch: Arch) -> Result<Self> {
        Ok(Self {
            qemu: find_or_fetch_qemu10(cache, arch)?,
            linux: Some(Linux { kernel: kernel(cache, arch)?, busybox: busybox(cache, arch)? }),
            recorder: find_or_build_recorder()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_the_remedy() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::at(place.path()).unwrap();
        let error = Kit::find(&cache, Arch::Aarch64, true).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("a kernel, a static busybox"), "{text}");
        assert!(text.ends_with("run `slat record --setup --arch aarch64`"), "{text}");
        assert!(!text.contains('\n'));
    }
}

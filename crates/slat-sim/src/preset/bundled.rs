//! The presets that are built in.

use super::{PresetError, Processor, unknown};

/// The bundled presets: file name and text, by maker and age.
const BUNDLED: &[(&str, &str)] = &[
    ("vt-x-2005", include_str!("../../presets/vt-x-2005.toml")),
    ("core-2", include_str!("../../presets/core-2.toml")),
    ("nehalem", include_str!("../../presets/nehalem.toml")),
    ("westmere", include_str!("../../presets/westmere.toml")),
    ("sandy-bridge", include_str!("../../presets/sandy-bridge.toml")),
    ("haswell", include_str!("../../presets/haswell.toml")),
    ("skylake-sp", include_str!("../../presets/skylake-sp.toml")),
    ("ice-lake", include_str!("../../presets/ice-lake.toml")),
    ("sapphire-rapids", include_str!("../../presets/sapphire-rapids.toml")),
    ("amd-v-2006", include_str!("../../presets/amd-v-2006.toml")),
    ("barcelona", include_str!("../../presets/barcelona.toml")),
    ("bulldozer", include_str!("../../presets/bulldozer.toml")),
    ("zen-1", include_str!("../../presets/zen-1.toml")),
    ("zen-2", include_str!("../../presets/zen-2.toml")),
    ("zen-3", include_str!("../../presets/zen-3.toml")),
    ("zen-4", include_str!("../../presets/zen-4.toml")),
    ("cortex-a15", include_str!("../../presets/cortex-a15.toml")),
    ("cortex-a57", include_str!("../../presets/cortex-a57.toml")),
    ("cortex-a72", include_str!("../../presets/cortex-a72.toml")),
    ("cortex-a76", include_str!("../../presets/cortex-a76.toml")),
    ("neoverse-n1", include_str!("../../presets/neoverse-n1.toml")),
    ("neoverse-n2", include_str!("../../presets/neoverse-n2.toml")),
    ("neoverse-v1", include_str!("../../presets/neoverse-v1.toml")),
    ("neoverse-v2", include_str!("../../presets/neoverse-v2.toml")),
];

impl Processor {
    /// The bundled preset of this name (as its file is called).
    ///
    /// # Errors
    /// Names the choices.
    pub fn bundled(name: &str) -> Result<Processor, PresetError> {
        let wanted = name.to_ascii_lowercase();
        match BUNDLED.iter().find(|(key, _)| *key == wanted) {
            Some((key, text)) => Processor::parse(key, text),
            None => Err(unknown("processor", name, Processor::names())),
        }
    }

    /// The names of all bundled presets.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUNDLED.iter().map(|(name, _)| *name)
    }
}

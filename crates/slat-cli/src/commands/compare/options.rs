//! What of the command line says how to compare.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use slat_sim::compare::{Discipline, Options, Scheme};
use slat_sim::hypervisor::{Hypervisor, Means};
use slat_sim::preset::{Processor, SecondStage};
use slat_sim::report::page_name;

use super::Args;

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum HostPage {
    #[value(name = "4K", alias = "4k")]
    Small,
    #[value(name = "2M", alias = "2m")]
    Large,
    #[value(name = "1G", alias = "1g")]
    Huge,
}

impl HostPage {
    fn shift(self) -> u8 {
        match self {
            HostPage::Small => 12,
            HostPage::Large => 21,
            HostPage::Huge => 30,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum SchemeName {
    Native,
    ShadowTrap,
    Shadow,
    Ept,
    Npt,
    Stage2,
    GStage,
}

impl SchemeName {
    /// As the command line and the tables say it.
    fn said(self) -> &'static str {
        self.schemes(&[12]).first().map_or("", |scheme| scheme.name())
    }

    /// The schemes of this name, over these host pages.
    fn schemes(self, pages: &[u8]) -> Vec<Scheme> {
        let over = |make: fn(u8) -> Scheme| pages.iter().map(|&shift| make(shift)).collect();
        match self {
            SchemeName::Native => vec![Scheme::Native],
            SchemeName::ShadowTrap => vec![Scheme::Shadow(Discipline::TrapAll)],
            SchemeName::Shadow => vec![Scheme::Shadow(Discipline::OutOfSync)],
            SchemeName::Ept => over(Scheme::Ept),
            SchemeName::Npt => over(Scheme::Npt),
            SchemeName::Stage2 => over(Scheme::Arm),
            SchemeName::GStage => over(Scheme::RiscV),
        }
    }
}

/// The machine, the hypervisor and the schemes.
pub(super) struct Setting {
    pub(super) processor: Processor,
    pub(super) hypervisor: Option<String>,
    pub(super) options: Options,
    /// What was asked for and is not so.
    pub(super) notes: Vec<String>,
}

impl Setting {
    pub(super) fn of(args: &Args) -> anyhow::Result<Setting> {
        let mut processor = processor(&args.processor)?;
        let mut pages: Vec<u8> = args.host_page.iter().map(|page| page.shift()).collect();
        pages.sort_unstable();
        pages.dedup();
        let mut tagged = if args.no_tags { Some(false) } else { args.tags.then_some(true) };
        let named = |names: &[SchemeName], pages: &[u8]| -> Vec<Scheme> {
            // Run times are relative to native.
            let mut schemes = vec![Scheme::Native];
            for scheme in names.iter().flat_map(|name| name.schemes(pages)) {
                if !schemes.contains(&scheme) {
                    schemes.push(scheme);
                }
            }
            schemes
        };
        let mut names = args.scheme.clone();
        let (mut name, mut notes) = (None, Vec::new());
        if let Some(wanted) = &args.hypervisor {
            let hypervisor = hypervisor(wanted)?;
            let means = hypervisor.means(&processor)?;
            let largest = hypervisor.largest_page(&processor).shift();
            let asked = std::mem::take(&mut pages);
            pages.extend(asked.iter().filter(|&&shift| shift <= largest));
            if pages.is_empty() {
                pages.push(largest);
                let asked: Vec<&str> = asked.iter().map(|&shift| page_name(shift)).collect();
                notes.push(format!(
                    "{} backs guests with pages of {} at most on {}, in place of {}",
                    hypervisor.name,
                    page_name(largest),
                    processor.name,
                    asked.join(" and ")
                ));
            }
            tagged = tagged.or_else(|| Some(hypervisor.tags(&processor)));
            let only = match means {
                Means::Shadow(Discipline::TrapAll) => SchemeName::ShadowTrap,
                Means::Shadow(Discipline::OutOfSync) => SchemeName::Shadow,
                Means::SecondStage(SecondStage::Npt) => SchemeName::Npt,
                Means::SecondStage(SecondStage::Arm) => SchemeName::Stage2,
                Means::SecondStage(_) => SchemeName::Ept,
            };
            let lacks = |name: &&SchemeName| ![SchemeName::Native, only].contains(name);
            if let Some(&other) = names.iter().find(lacks) {
                anyhow::bail!(
                    "{} has no {} on {}: it uses {} there",
                    hypervisor.name,
                    other.said(),
                    processor.name,
                    only.said()
                );
            }
            if names.is_empty() {
                names.push(only);
            }
            processor.cycles = hypervisor.cycles(&processor.cycles);
            name = Some(hypervisor.name);
        }
        let schemes = (!names.is_empty()).then(|| named(&names, &pages));
        let options = Options {
            host_pages: pages,
            tagged,
            cold_start: args.cold_start,
            pcid: args.pcid,
            what_ifs: true,
            transcribed: schemes.is_none(),
            schemes,
            warm_up: args.warm_up,
            one_by_one: false,
        };
        Ok(Setting { processor, hypervisor: name, options, notes })
    }
}

/// The narrowest list whose columns have room for words, and the widest that reads well.
const LIST_WIDTH: (usize, usize) = (40, 90);

/// More than any preset has.
const MOST_BYTES: u64 = 1 << 20;

/// The text of a preset's file, where `name` is one.
fn file(name: &str) -> anyhow::Result<Option<String>> {
    if Path::new(name).extension().is_none_or(|extension| extension != "toml") {
        return Ok(None);
    }
    let mut text = String::new();
    std::fs::File::open(name)
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
        .with_context(|| format!("cannot read {name}"))?;
    if text.len() as u64 > MOST_BYTES {
        anyhow::bail!("{name}: longer than 1 MiB, so this is no preset");
    }
    Ok(Some(text))
}

fn processor(name: &str) -> anyhow::Result<Processor> {
    Ok(match file(name)? {
        Some(text) => Processor::parse(name, &text)?,
        None => Processor::bundled(name)?,
    })
}

fn hypervisor(name: &str) -> anyhow::Result<Hypervisor> {
    Ok(match file(name)? {
        Some(text) => Hypervisor::parse(name, &text)?,
        None => Hypervisor::bundled(name)?,
    })
}

/// What `--list` prints, in lines of at most `width` columns within [`LIST_WIDTH`].
pub(super) fn list(width: usize) -> String {
    let width = width.clamp(LIST_WIDTH.0, LIST_WIDTH.1);
    let names = |names: &mut dyn Iterator<Item = &'static str>| -> String {
        let mut lines = vec![String::from(" ")];
        for name in names {
            match lines.last_mut() {
                Some(line) if line.len() + 1 + name.len() <= width => {
                    line.push(' ');
                    line.push_str(name);
                }
                _ => lines.push(format!("  {name}")),
            }
        }
        lines.join("\n")
    };
    format!(
        "{}\nProcessors (--processor):\n{}\n\nHypervisors (--hypervisor):\n{}\n",
        slat_sim::generated::list(width),
        names(&mut Processor::names()),
        names(&mut Hypervisor::names())
    )
}

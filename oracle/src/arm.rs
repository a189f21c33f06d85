//! What probes of 32-bit and of 64-bit Arm have in common: a guest that runs, or an address translation
//! operation.
//!
//! Of the state of a command: 0 PC, 1 the address, 2 what a store stores, 11 SPSR. Operation 1 runs; of the
//! others, bit 0 is a write, bit 1 user mode.

use slat::{Kind, Privilege};

use crate::contract::STATE;
use crate::probe::{Expectation, Outcome, Probe, Watcher};
use crate::reproduce::Walk;
use crate::world::World;

/// The manual leaves open what comes of it.
pub(crate) const UNUSABLE: Outcome = Outcome::Other([0; 4]);

/// Offset of the load in the stub's page; the store is 16 bytes behind it.
const LOAD: u64 = 0x800;
const STORE: u64 = 0x10;

/// The program counter of the stub at this base that loads or stores.
pub(crate) const fn stub(base: u64, load: bool) -> u64 {
    base + LOAD + if load { 0 } else { STORE }
}

/// Whether a run loads.
pub(crate) fn is_load(state: &[u64; STATE]) -> bool {
    state[0] != state[1] && state[0] & STORE == 0
}

/// What the register that loads fill says of an access that was made: what a load brought, or the mark of
/// the word that a fetch arrived at.
pub(crate) fn value(state: &[u64; STATE], register: u64) -> u64 {
    if state[0] == state[1] || is_load(state) { register } else { 0 }
}

/// Tells the words of the data apart, in as many bits as an instruction moves.
pub(crate) const fn mark(address: u64) -> u64 {
    address >> 3 & 0xFFFF
}

/// The kind of a probe's access; `at` names the address translation operations from 0x10 on.
pub(crate) fn access(probe: &Probe, at: [&'static str; 4]) -> &'static str {
    let state = &probe.state;
    match probe.operation {
        1 if state[0] == state[1] => "execute",
        1 if is_load(state) => "read",
        1 => "write",
        operation => at[(operation & 3) as usize],
    }
}

/// Where an access is made from.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    pub(crate) privilege: Privilege,
    /// By an address translation operation.
    pub(crate) at: bool,
}

impl Asked {
    pub(crate) fn new(kind: Kind, user: bool, at: bool) -> Asked {
        let privilege = if user { Privilege::User } else { Privilege::Supervisor };
        Asked { kind, privilege, at }
    }
}

/// Whether a run is in user mode.
pub(crate) fn is_user(state: &[u64; STATE]) -> bool {
    state[11] & 0xF == 0
}

/// A guest with its state, as the walker sees it.
pub(crate) trait Guest {
    /// Where the stub's page lies.
    const STUB: u64;
    /// Bytes that a load or store moves.
    const BYTES: u64;

    /// What a word of the data holds: an instruction that moves its mark into the register that loads
    /// fill, and a trap.
    fn tag(address: u64) -> u64;

    /// One access: the address that it reaches, and PAR where one is asked for.
    fn access(
        &self,
        world: &mut World,
        watcher: &Watcher,
        address: u64,
        asked: Asked,
    ) -> Result<(u64, u64), Outcome>;

    /// The vector of its own kernel to which a fault of stage 1 takes an access of this kind.
    fn vector(&self, kind: Kind, user: bool) -> u64;
}

/// PAR where a model takes the low bits of stage 1's normal type for a device type, and stage 2's type is a
/// device's. `first` has that byte of MAIR lowest, `second` is MemAttr of the stage-2 leaf.
pub(crate) fn combined_as_device(par: u64, first: u64, second: u64) -> u64 {
    let (normal, device) = (first & 0xF0 != 0, second & 0xC == 0);
    if !normal || !device {
        return par;
    }
    // From the strongest: nGnRnE, nGnRE, nGRE, GRE.
    let types = [first & 0xF, (second & 3) << 2];
    let combined = [0, 4, 8].into_iter().find(|kind| types.contains(kind)).unwrap_or(12);
    par & (u64::MAX >> 8) | combined << 56
}

/// What becomes of a guest that was sent to a vector of its own kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Return {
    /// It traps to the monitor, by the vector's HVC or by a fault of stage 2.
    Comes,
    /// The vector cannot be fetched, which leads to a vector that cannot be fetched either.
    Never,
    /// It runs what it finds.
    Unknown,
}

/// What becomes of a guest that was sent to this vector; `by_stage2` says whether a fault of stage 2 there
/// will do.
pub(crate) fn returns<G: Guest>(
    guest: &G,
    world: &mut World,
    watcher: &Watcher,
    vector: u64,
    by_stage2: bool,
) -> Return {
    watcher.set_aside(true);
    let reached = guest.access(world, watcher, vector, Asked::new(Kind::Execute, false, false));
    watcher.set_aside(false);
    match reached {
        Ok((spa, _)) if spa & !0xFFF == G::STUB => Return::Comes,
        Ok((spa, _)) if world.is_empty(spa) => Return::Never,
        Err(Outcome::Stage2 { .. }) if by_stage2 => Return::Comes,
        Err(Outcome::Stage1 { .. } | Outcome::Bus { .. }) => Return::Never,
        Ok(_) | Err(_) => Return::Unknown,
    }
}

/// What the walker says of a probe.
pub(crate) fn expect<G: Guest>(
    guest: &G,
    probe: &Probe,
    world: &mut World,
    watcher: &Watcher,
) -> Expectation {
    let state = &probe.state;
    let user = is_user(state);
    let mut reached = None;
    let mut unusable = false;
    let mut endless = false;
    let mut run = || -> Result<u64, Outcome> {
        let (pc, address) = (state[0], state[1]);
        if probe.operation != 1 {
            let kind = if probe.operation & 1 != 0 { Kind::Write } else { Kind::Read };
            let asked = Asked::new(kind, probe.operation & 2 != 0, true);
            return Ok(guest.access(world, watcher, address, asked)?.1);
        }
        let mut step = |world: &mut World, address, kind| {
            let outcome = guest.access(world, watcher, address, Asked::new(kind, user, false));
            if let Err(Outcome::Stage1 { .. }) = outcome {
                let returns = returns(guest, world, watcher, guest.vector(kind, user), true);
                unusable |= returns == Return::Unknown;
                endless |= returns == Return::Never;
            }
            outcome.map(|(spa, _)| spa)
        };
        let fetched = step(world, pc, Kind::Execute)?;
        if pc == address {
            reached = Some(fetched);
            world.visit(fetched);
            return match world.word(fetched) {
                Some(word) => {
                    unusable |= word != G::tag(fetched);
                    Ok(mark(fetched))
                }
                // Where a fetch meets no memory, an emulator may run on.
                None => Err(UNUSABLE),
            };
        }
        if fetched & !0xFFF != G::STUB {
            unusable = true;
            return Ok(0);
        }
        let kind = if is_load(state) { Kind::Read } else { Kind::Write };
        let spa = step(world, address, kind)?;
        reached = Some(spa);
        world.visit(spa);
        let Some(word) = world.word(spa) else { return Err(Outcome::Bus { syndrome: 0 }) };
        let mask = u64::MAX >> (64 - 8 * G::BYTES);
        let shift = 8 * (spa & (8 - G::BYTES));
        if kind == Kind::Write {
            world.poke(spa, word & !(mask << shift) | (state[2] & mask) << shift);
            return Ok(0);
        }
        Ok(word >> shift & mask)
    };
    let outcome = match run() {
        Ok(value) => Outcome::Done { value },
        Err(outcome) => outcome,
    };
    unusable |= outcome == UNUSABLE || outcome == Outcome::REGISTERS;
    Expectation { outcome, reached, unusable, endless }
}

/// The probe's accesses: that of an address translation operation, or the fetch and what follows it. `walk`
/// makes one for user mode or not.
pub(crate) fn walks(probe: &Probe, walk: impl Fn(&'static str, bool, u64) -> Walk) -> Vec<Walk> {
    let s = &probe.state;
    if probe.operation != 1 {
        let access = if probe.operation & 1 != 0 { "w" } else { "r" };
        return vec![walk(access, probe.operation & 2 != 0, s[1])];
    }
    let user = is_user(s);
    let mut walks = vec![walk("x", user, s[0])];
    if s[0] != s[1] {
        walks.push(walk(if is_load(s) { "r" } else { "w" }, user, s[1]));
    }
    walks
}

//! Why a hypervisor does not start.

/// Why a hypervisor does not start on a processor, in the words that its user needs.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The processor has no second stage.
    #[error(
        "{hypervisor} does not start on this processor, {processor}: it needs second-level address \
         translation (SLAT{names}), which {processor} does not have. No firmware setting adds it. \
         {remedy}"
    )]
    NeedsSlat {
        /// Its name.
        hypervisor: String,
        /// The processor's name.
        processor: String,
        /// What the makers of this architecture call it.
        names: &'static str,
        /// What the user can do.
        remedy: &'static str,
    },
    /// The processor has one that this version does not know.
    #[error(
        "{hypervisor} does not start on this processor, {processor}: it needs SLAT and does not \
         know {second_stage}, which {processor} has{since}"
    )]
    UnknownSlat {
        /// Its name.
        hypervisor: String,
        /// The processor's name.
        processor: String,
        /// The second stage's name.
        second_stage: &'static str,
        /// From which version on it does, as a clause.
        since: String,
    },
    /// It is made for another architecture.
    #[error("{hypervisor} does not start on {processor}: it is not made for {architecture}{since}")]
    OtherArchitecture {
        /// Its name.
        hypervisor: String,
        /// The processor's name.
        processor: String,
        /// The processor's architecture.
        architecture: &'static str,
        /// From which version on it is, as a clause.
        since: String,
    },
    /// The processor's preset does not say what it can do.
    #[error("the preset of processor {processor} has no section [virtualization]")]
    Unstated {
        /// The processor's name.
        processor: String,
    },
}

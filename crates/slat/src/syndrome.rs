//! How an architecture reports a fault.

pub mod arm32;
pub mod arm64;
pub mod riscv;
pub mod x86;

/// One field of a syndrome, as the manual constrains it.
///
/// Comparing hardware with a model must not compare what a manual leaves open, and an emulator must
/// choose where the manual lets it: this says which is which.
///
/// ```
/// use slat::syndrome::Field;
/// let htval = Field::OneOf([0x10002, 0]); // the address, or no information
/// assert!(htval.permits(&0) && !htval.permits(&1));
/// assert_eq!(htval.choose(), Some(0x10002));
/// assert!(Field::<u64>::Undefined.permits(&1));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Field<T> {
    /// Exactly this.
    Defined(T),
    /// Anything: never to be compared.
    Undefined,
    /// One of these; the more informative one first.
    OneOf([T; 2]),
}

impl<T: PartialEq> Field<T> {
    /// Whether hardware that follows the manual may report `value`.
    pub fn permits(&self, value: &T) -> bool {
        match self {
            Field::Defined(only) => only == value,
            Field::Undefined => true,
            Field::OneOf(choices) => choices.contains(value),
        }
    }
}

impl<T: Copy> Field<T> {
    /// The most informative permitted value, or `None` where the manual defines none.
    pub fn choose(&self) -> Option<T> {
        match *self {
            Field::Defined(value) | Field::OneOf([value, _]) => Some(value),
            Field::Undefined => None,
        }
    }

    /// The least informative permitted value, or `None` where the manual defines none.
    pub fn choose_least(&self) -> Option<T> {
        match *self {
            Field::Defined(value) | Field::OneOf([_, value]) => Some(value),
            Field::Undefined => None,
        }
    }
}

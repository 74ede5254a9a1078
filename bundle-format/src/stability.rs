//! Stability profiles: how far a GPU's kernels keep from what it is known to fail at, chosen by the compiler and recorded.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A stability profile: the stricter, the slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stability {
    Fast,
    Balanced,
    Strict,
}

impl Stability {
    /// Every profile, by ascending strictness.
    pub const ALL: [Stability; 3] = [Stability::Fast, Stability::Balanced, Stability::Strict];

    /// The next stricter one; none behind the strictest.
    pub fn stricter(self) -> Option<Stability> {
        match self {
            Stability::Fast => Some(Stability::Balanced),
            Stability::Balanced => Some(Stability::Strict),
            Stability::Strict => None,
        }
    }
}

impl fmt::Display for Stability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stability::Fast => "fast",
            Stability::Balanced => "balanced",
            Stability::Strict => "strict",
        })
    }
}

/// A set of profiles: bit n is profile n of [`Stability::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Profiles(pub u8);

impl Profiles {
    /// No profile: a plan that has none.
    pub const NONE: Profiles = Profiles(0);

    pub fn has(self, stability: Stability) -> bool {
        self.0 & Profiles::from(stability).0 != 0
    }

    pub fn and(self, others: Profiles) -> Profiles {
        Profiles(self.0 | others.0)
    }

    /// Those that both sets have.
    pub fn common(self, others: Profiles) -> Profiles {
        Profiles(self.0 & others.0)
    }

    /// Those that the others don't have.
    pub fn without(self, others: Profiles) -> Profiles {
        Profiles(self.0 & !others.0)
    }

    /// The profiles of the set, by ascending strictness.
    pub fn iter(self) -> impl Iterator<Item = Stability> {
        Stability::ALL.into_iter().filter(move |&s| self.has(s))
    }
}

impl From<Stability> for Profiles {
    fn from(stability: Stability) -> Profiles {
        Profiles(1 << stability as u8)
    }
}

impl FromIterator<Stability> for Profiles {
    fn from_iter<I: IntoIterator<Item = Stability>>(all: I) -> Profiles {
        all.into_iter()
            .fold(Profiles::NONE, |set, one| set.and(one.into()))
    }
}

/// A profile that a plan can be run by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub stability: Stability,
    /// Whether kernels are launched one by one, not by graphs.
    pub eager: bool,
    /// What the compiler chose for it, for people.
    pub rules: Vec<Rule>,
}

/// A choice of the compiler's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What it is about, and when: `attention of single tokens, from 17 rows on`.
    pub when: String,
    pub choice: String,
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set: Profiles = [Stability::Strict, Stability::Fast].into_iter().collect();
        assert_eq!(set, Profiles(0b101));
        assert!(set.has(Stability::Strict) && !set.has(Stability::Balanced));
        let all: Vec<Stability> = set.iter().collect();
        assert_eq!(all, [Stability::Fast, Stability::Strict]);
        assert_eq!(Profiles::NONE.iter().count(), 0);
        let strict: Profiles = Stability::Strict.into();
        assert_eq!(set.common(strict), strict);
        assert_eq!(set.without(strict), Profiles(0b001));
    }
}

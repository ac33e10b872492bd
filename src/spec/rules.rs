//! Which policy an image gets, and why.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::size;
use crate::oci::Reference;

/// What becomes of an image's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// They are kept; containerd unpacks them at first use.
    Fetch,
    /// They are kept and unpacked.
    Unpack,
    /// They are unpacked and not kept.
    UnpackDiscard,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fetch => "fetch",
            Self::Unpack => "unpack",
            Self::UnpackDiscard => "unpack-discard",
        })
    }
}

/// What is asked for images that fit. A key that is not there fits all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    /// Their names; `*` stands for anything.
    pub name: Option<String>,
    /// At least so many compressed bytes.
    #[serde(default, deserialize_with = "size::deserialize")]
    pub over: Option<u64>,
    /// Fewer compressed bytes.
    #[serde(default, deserialize_with = "size::deserialize")]
    pub under: Option<u64>,
    /// At least so many bytes unpacked.
    #[serde(default, deserialize_with = "size::deserialize")]
    pub unpacked_over: Option<u64>,
    /// Fewer bytes unpacked.
    #[serde(default, deserialize_with = "size::deserialize")]
    pub unpacked_under: Option<u64>,
    /// What becomes of their layers.
    pub policy: Option<Policy>,
    /// Whether kubelet must never remove them.
    pub pin: Option<bool>,
    /// The option of the command line that stands for it, if it is none of a file.
    #[serde(skip)]
    pub option: Option<&'static str>,
}

/// What is known of an image when rules are applied, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// All its blobs.
    pub compressed: u64,
    /// Its layers unpacked, as far as can be told.
    pub unpacked: u64,
}

impl Rule {
    fn fits(&self, name: &Reference, sizes: Sizes) -> bool {
        self.name.as_ref().is_none_or(|pattern| name.fits(pattern))
            && self.over.is_none_or(|least| sizes.compressed >= least)
            && self.under.is_none_or(|limit| sizes.compressed < limit)
            && self.unpacked_over.is_none_or(|least| sizes.unpacked >= least)
            && self.unpacked_under.is_none_or(|limit| sizes.unpacked < limit)
    }
}

/// Why an image has its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its own entry says so.
    Entry,
    /// The rule with this number says so, counted from 1.
    Rule(usize),
    /// An option of the command line says so.
    Option(&'static str),
    /// Nothing else says anything.
    Default,
    /// It has no layers that containerd would unpack.
    NoLayers,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry => f.pad("its entry"),
            Self::Rule(n) => f.pad(&format!("rule {n}")),
            Self::Option(option) => f.pad(option),
            Self::Default => f.pad("default"),
            Self::NoLayers => f.pad("no layers"),
        }
    }
}

/// What an image gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// What becomes of its layers.
    pub policy: Policy,
    /// Who says so.
    pub reason: Reason,
    /// Whether kubelet must never remove it.
    pub pin: bool,
}

/// Chooses by the image's own entry, else by the first rule that fits and says anything of the matter, else by default.
pub fn choose(
    own: (Option<Policy>, Option<bool>),
    rules: &[Rule],
    default: (Policy, bool),
    name: &Reference,
    sizes: Sizes,
) -> Choice {
    let fitting = || rules.iter().enumerate().filter(|(_, rule)| rule.fits(name, sizes));
    let by_rule = || {
        fitting().find_map(|(i, rule)| Some((rule.policy?, rule.option.map_or(Reason::Rule(i + 1), Reason::Option))))
    };
    let own_policy = own.0.map(|policy| (policy, Reason::Entry));
    let (policy, reason) = own_policy.or_else(by_rule).unwrap_or((default.0, Reason::Default));
    let pin = own.1.or_else(|| fitting().find_map(|(_, rule)| rule.pin)).unwrap_or(default.1);
    Choice { policy, reason, pin }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_says_something() {
        let name: Reference = "registry.example/pause:3".parse().expect("a reference");
        let sizes = Sizes { compressed: 100, unpacked: 250 };
        let rule = |change: &dyn Fn(&mut Rule)| {
            let mut rule = Rule::default();
            change(&mut rule);
            rule
        };
        let rules = [
            rule(&|rule| (rule.name, rule.pin) = (Some("*/pause:*".to_owned()), Some(true))),
            rule(&|rule| (rule.over, rule.policy) = (Some(101), Some(Policy::Fetch))),
            rule(&|rule| {
                (rule.over, rule.unpacked_under, rule.policy, rule.pin) =
                    (Some(100), Some(251), Some(Policy::UnpackDiscard), Some(false));
            }),
            rule(&|rule| rule.policy = Some(Policy::Fetch)),
        ];
        let default = (Policy::Unpack, false);
        let chosen = |own, rules: &[Rule]| choose(own, rules, default, &name, sizes);
        let third = Choice { policy: Policy::UnpackDiscard, reason: Reason::Rule(3), pin: true };
        assert_eq!(chosen((None, None), &rules), third);
        assert_eq!(chosen((None, Some(false)), &rules), Choice { pin: false, ..third });
        let own = Choice { policy: Policy::Fetch, reason: Reason::Entry, pin: true };
        assert_eq!(chosen((Some(Policy::Fetch), None), &rules), own);
        let none = Choice { policy: Policy::Unpack, reason: Reason::Default, pin: false };
        assert_eq!(chosen((None, None), &rules[1..2]), none);
        assert_eq!(
            choose((None, None), &rules, default, &name, Sizes { unpacked: 251, ..sizes }).reason,
            Reason::Rule(4)
        );
    }
}

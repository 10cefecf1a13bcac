//! The order of routing rules: of uvn's own, and of other programs' rules beside them.

use super::reading;
use crate::plan::{Item, RuleKind};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};

/// The first preference that uvn does not use.
const FREE: u32 = 4;

/// Marks a `local` rule that the kernel lists before the l3mdev rule of the same preference as
/// [`RuleKind::LocalFirst`].
pub(super) fn in_order(mut items: Vec<Item>) -> Vec<Item> {
    for family in [true, false] {
        let first = |kind: RuleKind| {
            items.iter().position(|item| *item == Item::Rule { ipv4: family, priority: 0, kind })
        };
        if let (Some(local), Some(l3mdev)) = (first(RuleKind::Local), first(RuleKind::L3mdev))
            && local < l3mdev
        {
            items[local] = Item::Rule { ipv4: family, priority: 0, kind: RuleKind::LocalFirst };
        }
    }
    items
}

/// Other programs' rules with preference 0, each as it is and as it would be without uvn's rules: the kernel puts a
/// rule without a preference before the second rule, which then is the first one after `local` (fib_default_rule_pref,
/// net/core/fib_rules.c).
pub(super) fn out_of_place(rules: &[RuleMessage]) -> Vec<(RuleMessage, RuleMessage)> {
    let mut moves = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let is_others = |rule: &&RuleMessage| {
            // The kernel adds its own l3mdev rule with the first VRF.
            rule.header.family == family && reading::rule(rule).is_none() && !is_l3mdev(rule)
        };
        let others = || rules.iter().filter(is_others);
        let Some(mut next) = others().map(preference).filter(|preference| *preference > 0).min() else {
            continue;
        };
        for rule in others().filter(|rule| preference(rule) == 0) {
            if next <= FREE {
                break;
            }
            next -= 1;
            let mut after = rule.clone();
            after.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Priority(_)));
            after.attributes.push(RuleAttribute::Priority(next));
            moves.push((rule.clone(), after));
        }
    }
    moves
}

/// A rule for the log: its preference, family and table.
pub(super) fn words(rule: &RuleMessage) -> String {
    let family = if rule.header.family == AddressFamily::Inet { 4 } else { 6 };
    let table = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let table = table.unwrap_or(u32::from(rule.header.table));
    format!("{} (IPv{family}, table {table})", preference(rule))
}

fn preference(rule: &RuleMessage) -> u32 {
    let attributes = &rule.attributes;
    let found = attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(preference) => Some(*preference),
        _ => None,
    });
    found.unwrap_or(0)
}

fn is_l3mdev(rule: &RuleMessage) -> bool {
    rule.attributes.iter().any(|attribute| matches!(attribute, RuleAttribute::L3MDev(true)))
}

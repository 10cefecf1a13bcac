//! Deficit round robin (Shreedhar and Varghese, 1996): whose turn it is among the slots with work.
//!
//! At each visit a slot gets a quantum of credit, and is served while it has credit. What it takes beyond that is a
//! debt, which its next quanta pay. So in the long run every slot gets the same, whatever it asks for, and a newcomer
//! waits for at most one quantum of each other slot. If all are in debt, the rounds without service are skipped.

use std::collections::VecDeque;

/// The slots with work, in turn. Costs and credits are in a unit of the caller's choice.
#[derive(Debug)]
pub struct Rotation {
    quantum: i64,
    /// The slots with work, the next one first.
    order: VecDeque<u32>,
    /// How many slots at the front of `order` had no turn in the last round.
    early: usize,
    /// Turns so far.
    turns: u64,
    shares: Vec<Share>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Share {
    /// Negative: a debt.
    credit: i64,
    /// Whether it is in `Rotation::order`.
    waiting: bool,
    /// Whether it had more work when it was served last.
    backlogged: bool,
    /// [`Rotation::turns`] at the end of its last turn.
    served: u64,
}

/// A slot's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The slot.
    pub slot: u32,
    /// The cost that it may take, at least 1.
    pub credit: i64,
    /// Whether it had more work when it was served last.
    pub backlogged: bool,
}

impl Rotation {
    /// No slot has work yet. A `quantum` of 0 counts as 1.
    #[must_use]
    pub fn new(quantum: u32) -> Rotation {
        let quantum = i64::from(quantum.max(1));
        Rotation { quantum, order: VecDeque::new(), early: 0, turns: 0, shares: Vec::new() }
    }

    /// Adds a slot with work: behind those that wait already, or before those that have been served since it was.
    pub fn add(&mut self, slot: u32) {
        let index = slot as usize;
        if self.shares.len() <= index {
            self.shares.resize_with(index + 1, Share::default);
        }
        let share = &mut self.shares[index];
        if std::mem::replace(&mut share.waiting, true) {
            return;
        }
        if self.turns - share.served > self.order.len() as u64 {
            self.order.insert(self.early, slot);
            self.early += 1;
        } else {
            self.order.push_back(slot);
        }
    }

    /// Forgets a slot and its debt.
    pub fn remove(&mut self, slot: u32) {
        if let Some(position) = self.order.iter().position(|waiting| *waiting == slot) {
            self.order.remove(position);
            self.early -= usize::from(position < self.early);
        }
        if let Some(share) = self.shares.get_mut(slot as usize) {
            *share = Share::default();
        }
    }

    /// The number of slots that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.order.len()
    }

    /// The slots that wait, the next one first.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        self.order.iter().copied()
    }

    /// Begins the next turn, which ends with [`Rotation::end`]; meanwhile the slot does not wait. None: no slot waits.
    #[must_use]
    pub fn begin(&mut self) -> Option<Turn> {
        let mut least = i64::MAX;
        for _ in 0..self.order.len() {
            let slot = self.order.pop_front()?;
            self.early = self.early.saturating_sub(1);
            let Some(share) = self.shares.get_mut(slot as usize) else { continue };
            share.credit = (share.credit + self.quantum).min(self.quantum);
            if share.credit > 0 {
                share.waiting = false;
                return Some(Turn { slot, credit: share.credit, backlogged: share.backlogged });
            }
            least = least.min(-share.credit);
            self.order.push_back(slot);
        }
        if self.order.is_empty() {
            return None;
        }
        // Skips all but the last of the rounds in which no slot would be served.
        let paid = least / self.quantum * self.quantum;
        for &slot in &self.order {
            if let Some(share) = self.shares.get_mut(slot as usize) {
                share.credit += paid;
            }
        }
        self.begin()
    }

    /// Ends a turn in which the slot took `cost`. With `more` work it waits for another turn.
    pub fn end(&mut self, turn: Turn, cost: i64, more: bool) {
        let Some(share) = self.shares.get_mut(turn.slot as usize) else { return };
        self.turns += 1;
        share.served = self.turns;
        share.credit -= cost;
        share.backlogged = more;
        if more {
            self.add(turn.slot);
        } else {
            // A slot without more work does not save credit.
            share.credit = share.credit.min(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves until `turns` are over: each slot takes frames of its cost while it has credit. Who got how much.
    fn serve(rotation: &mut Rotation, costs: &[i64], turns: usize) -> Vec<i64> {
        let mut taken = vec![0; costs.len()];
        for _ in 0..turns {
            let turn = rotation.begin().unwrap();
            let cost = costs[turn.slot as usize];
            let frames = (turn.credit + cost - 1) / cost;
            taken[turn.slot as usize] += frames * cost;
            rotation.end(turn, frames * cost, true);
        }
        taken
    }

    #[test]
    fn all_get_the_same_whatever_their_frames_cost() {
        let costs = [1, 7, 100, 950];
        let mut rotation = Rotation::new(100);
        for slot in 0..4 {
            rotation.add(slot);
        }
        let taken = serve(&mut rotation, &costs, 10_000);
        let most = taken.iter().max().unwrap();
        for share in &taken {
            assert!(most - share <= 950 + 100, "{taken:?}");
        }
    }

    #[test]
    fn a_newcomer_waits_for_one_quantum_of_each_other() {
        let mut rotation = Rotation::new(10);
        rotation.add(0);
        rotation.add(1);
        let first = rotation.begin().unwrap();
        rotation.add(2);
        rotation.end(first, 10, true);
        let order: Vec<u32> = std::iter::from_fn(|| {
            let turn = rotation.begin()?;
            rotation.end(turn, 10, turn.slot != 2);
            Some(turn.slot)
        })
        .take(5)
        .collect();
        assert_eq!(order, [1, 2, 0, 1, 0]);
    }

    #[test]
    fn who_was_not_served_in_a_round_goes_first_but_not_twice() {
        let mut rotation = Rotation::new(10);
        (0..3).for_each(|slot| rotation.add(slot));
        let mut serve = |asking: &[u32]| {
            asking.iter().for_each(|slot| rotation.add(*slot));
            let turn = rotation.begin().unwrap();
            rotation.end(turn, turn.credit, turn.slot < 3);
            turn.slot
        };
        let alone: Vec<u32> = (0..5).map(|_| serve(&[])).collect();
        assert_eq!(alone, [0, 1, 2, 0, 1]);
        // They ask without end, each time for no more than their credit: as often as the others, and in order.
        let beside: Vec<u32> = (0..12).map(|_| serve(&[3, 4])).collect();
        assert_eq!(beside, [3, 4, 2, 0, 1, 3, 4, 2, 0, 1, 3, 4]);
    }

    #[test]
    fn who_goes_first_and_is_removed_leaves_the_place_to_the_next() {
        let mut rotation = Rotation::new(10);
        rotation.add(0);
        for _ in 0..5 {
            let turn = rotation.begin().unwrap();
            rotation.end(turn, 10, true);
        }
        (3..5).for_each(|slot| rotation.add(slot));
        rotation.remove(3);
        rotation.add(5);
        assert_eq!(rotation.slots().collect::<Vec<_>>(), [4, 5, 0]);
    }

    #[test]
    fn debts_are_paid_at_once_if_all_have_some_and_kept_if_not() {
        let mut rotation = Rotation::new(10);
        rotation.add(0);
        rotation.add(1);
        for cost in [95, 45] {
            let turn = rotation.begin().unwrap();
            assert_eq!((turn.credit, turn.backlogged), (10, false));
            rotation.end(turn, cost, true);
        }
        // Debts of 85 and 35: the second is served first, and until the first has paid as well.
        let slots: Vec<u32> = (0..6)
            .map(|_| {
                let turn = rotation.begin().unwrap();
                rotation.end(turn, turn.credit, true);
                turn.slot
            })
            .collect();
        assert_eq!(slots, [1, 1, 1, 1, 1, 0]);
        // With nothing more to do a debt stays, a credit does not.
        let turn = rotation.begin().unwrap();
        rotation.end(turn, 15, false);
        let other = rotation.begin().unwrap();
        rotation.end(other, 1, false);
        assert_eq!(rotation.begin(), None);
        rotation.add(turn.slot);
        rotation.add(other.slot);
        assert_eq!(rotation.begin().unwrap().credit, 5);
        assert_eq!(rotation.begin().unwrap().credit, 10);
    }

    #[test]
    fn a_removed_slot_is_forgotten() {
        let mut rotation = Rotation::new(10);
        rotation.add(3);
        rotation.add(3);
        assert_eq!(rotation.waiting(), 1);
        let turn = rotation.begin().unwrap();
        rotation.end(turn, 1000, true);
        rotation.remove(3);
        assert_eq!(rotation.begin(), None);
        rotation.add(3);
        assert_eq!(rotation.begin(), Some(Turn { slot: 3, credit: 10, backlogged: false }));
    }
}

//! The networks of a NIC by slot, the MACs learned in them, and the tables that workers get of them.
//!
//! Only the control thread changes them; workers get finished [`tables::Network`]s.

use crate::port::device::EndpointSource;
use hashbrown::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use uvn_api::dataplane::config::Network;
use uvn_api::dataplane::message::Counts;
use uvn_api::dataplane::vteps::Vteps;
use uvn_engine::counters::Counters;
use uvn_engine::tables::{self, Learned};
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;
use uvn_wire::xdp::Traffic;

/// One network.
pub struct Entry {
    /// Its configuration.
    pub network: Network,
    /// Its endpoint's MAC.
    pub mac: Mac,
    /// Its endpoint's device.
    pub source: EndpointSource,
    /// Why it has no endpoint now; None: it has one.
    pub fault: Option<String>,
    /// The counters of each worker, since the workers were started.
    counters: Arc<[Counters]>,
    /// The counts of earlier workers.
    past: Counts,
    learned: HashMap<Mac, Arc<Learned>>,
    /// What workers get of it; None: it must be built again, after a change.
    table: Option<Arc<tables::Network>>,
}

impl Entry {
    /// A new network.
    #[must_use]
    pub fn new(network: Network, mac: Mac, source: EndpointSource, workers: usize) -> Entry {
        Entry {
            network,
            mac,
            source,
            fault: None,
            counters: counters(workers),
            past: Counts::default(),
            learned: HashMap::new(),
            table: None,
        }
    }

    /// Where its broadcast, multicast and unknown frames go: the multicast group, and the peers.
    pub fn flood(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.network.group.into_iter().chain(self.network.peers.iter().copied())
    }

    /// Replaces the VTEPs to which it floods.
    pub fn set_peers(&mut self, peers: Vec<IpAddr>) {
        self.network.peers = peers;
        self.table = None;
    }

    /// The number of learned MACs.
    #[must_use]
    pub fn learned(&self) -> usize {
        self.learned.len()
    }

    /// Adds what the shortcut has counted for it, before the shortcut forgets that.
    pub fn keep(&mut self, traffic: &Traffic) {
        self.past.add_traffic(traffic);
    }

    /// Its drawbacks: the network works, but for these.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.source.notes().collect()
    }

    /// The counts of all workers, of earlier ones as well.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = self.past.clone();
        self.counters.iter().for_each(|counters| counters.add_to(&mut counts));
        counts
    }

    /// Learns that a MAC is behind a VTEP. False: nothing has changed, or there is no room.
    fn learn(&mut self, mac: Mac, vtep: IpAddr, now: u32) -> bool {
        if !self.network.learning || mac == self.mac || mac.is_multicast() {
            return false;
        }
        match self.learned.get(&mac) {
            Some(learned) if learned.vtep == vtep => return false,
            None if self.learned.len() >= self.network.max_addresses => return false,
            _ => {}
        }
        self.learned.insert(mac, Arc::new(Learned { vtep, seen: AtomicU32::new(now) }));
        self.table = None;
        true
    }

    /// Forgets MACs that were not seen for the network's ageing time. False: there are none.
    fn age(&mut self, now: u32) -> bool {
        let before = self.learned.len();
        let oldest = now.saturating_sub(self.network.ageing);
        self.learned.retain(|_, learned| learned.seen.load(Relaxed) >= oldest);
        let aged = self.learned.len() < before;
        if aged {
            self.table = None;
        }
        aged
    }

    /// What workers get. Peers that are not allowed VTEPs are left out.
    fn table(&mut self, vteps: &Vteps) -> Arc<tables::Network> {
        if let Some(table) = &self.table {
            return table.clone();
        }
        let table = Arc::new(tables::Network {
            vni: self.network.vni,
            mac: self.mac,
            addresses: self.network.addresses.clone(),
            flood: self.flood().filter(|to| to.is_multicast() || vteps.allows(*to)).collect(),
            flood_rate: self.network.flood_rate.div_ceil(self.source.readers(self.counters.len())),
            learning: self.network.learning,
            fdb: self.learned.clone(),
            counters: self.counters.clone(),
        });
        self.table = Some(table.clone());
        table
    }
}

/// All networks of a NIC.
#[derive(Default)]
pub struct Networks {
    entries: Vec<Option<Entry>>,
    slots: HashMap<Vni, u32>,
}

impl Networks {
    /// The number of networks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Puts a network into the lowest free slot, and returns the slot. Its VNI must not be present.
    pub fn insert(&mut self, entry: Entry) -> u32 {
        let free = self.entries.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.entries.len());
        // There are 2^24 VNIs: a slot always fits.
        let number = u32::try_from(slot).unwrap_or(u32::MAX);
        self.slots.insert(entry.network.vni, number);
        match self.entries.get_mut(slot) {
            Some(place) => *place = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        number
    }

    /// Removes a network, and returns it with its slot.
    pub fn remove(&mut self, vni: Vni) -> Option<(u32, Entry)> {
        let slot = self.slots.remove(&vni)?;
        let entry = self.entries.get_mut(slot as usize)?.take()?;
        Some((slot, entry))
    }

    /// Ends every network, in up to 32 threads: the kernel takes tens of milliseconds to delete a device, mostly
    /// waiting.
    pub fn remove_all(&mut self) {
        const AT_ONCE: usize = 32;
        self.slots.clear();
        let mut entries: Vec<Entry> = self.entries.drain(..).flatten().collect();
        let share = entries.len().div_ceil(AT_ONCE);
        std::thread::scope(|scope| {
            while !entries.is_empty() {
                let part = entries.split_off(entries.len().saturating_sub(share));
                scope.spawn(|| part.into_iter().for_each(|entry| entry.source.remove()));
            }
        });
    }

    /// A network and its slot.
    #[must_use]
    pub fn get(&self, vni: Vni) -> Option<(u32, &Entry)> {
        let slot = *self.slots.get(&vni)?;
        Some((slot, self.entries.get(slot as usize)?.as_ref()?))
    }

    /// A network, to change it.
    pub fn get_mut(&mut self, vni: Vni) -> Option<&mut Entry> {
        self.by_slot(*self.slots.get(&vni)?)
    }

    /// The network in a slot.
    pub fn by_slot(&mut self, slot: u32) -> Option<&mut Entry> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    /// Every network with its slot.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Entry)> {
        (0..).zip(&self.entries).filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)))
    }

    /// Every network with its slot, to change it.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Entry)> {
        (0..).zip(&mut self.entries).filter_map(|(slot, entry)| Some((slot, entry.as_mut()?)))
    }

    /// Learns that a worker saw a MAC behind a VTEP. False: nothing has changed.
    pub fn learn(&mut self, slot: u32, vni: Vni, mac: Mac, vtep: IpAddr, now: u32) -> bool {
        match self.by_slot(slot) {
            // The slot may be another network's by now.
            Some(entry) if entry.network.vni == vni => entry.learn(mac, vtep, now),
            _ => false,
        }
    }

    /// Forgets aged MACs in all networks; `now` is in seconds since the workers' start. False: nothing has changed.
    pub fn age(&mut self, now: u32) -> bool {
        let mut aged = false;
        for (_, entry) in self.iter_mut() {
            aged |= entry.age(now);
        }
        aged
    }

    /// Prepares for another set of workers, and keeps the counts of the old ones.
    pub fn set_workers(&mut self, workers: usize) {
        for (_, entry) in self.iter_mut() {
            entry.past = entry.counts();
            entry.counters = counters(workers);
            entry.table = None;
        }
    }

    /// Follows a change of the allowed VTEPs: forgets MACs behind VTEPs that are not allowed.
    pub fn follow(&mut self, vteps: &Vteps) {
        for (_, entry) in self.iter_mut() {
            entry.learned.retain(|_, learned| vteps.allows(learned.vtep));
            entry.table = None;
        }
    }

    /// What workers get: the networks by slot, and the slot of each VNI.
    pub fn tables(&mut self, vteps: &Vteps) -> (Vec<Option<Arc<tables::Network>>>, HashMap<Vni, u32>) {
        let networks =
            self.entries.iter_mut().map(|entry| entry.as_mut().map(|entry| entry.table(vteps))).collect();
        (networks, self.slots.clone())
    }
}

fn counters(workers: usize) -> Arc<[Counters]> {
    (0..workers).map(|_| Counters::default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uvn_api::dataplane::config::Peers;
    use uvn_engine::counters::Drop;

    fn vtep(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn vni(number: u32) -> Vni {
        Vni::new(number).unwrap()
    }

    const OWN: Mac = Mac([2, 0x75, 10, 0, 0, 1]);

    fn mac(last: u8) -> Mac {
        Mac([0x52, 0x54, 0, 0, 0, last])
    }

    fn entry(number: u32) -> Entry {
        let text = format!(
            r#"{{"vni": {number}, "addresses": ["10.0.0.1/24"], "peers": ["10.0.0.2"], "learning": true,
                "max_addresses": 2, "ageing": 10}}"#
        );
        Entry::new(serde_json::from_str(&text).unwrap(), OWN, EndpointSource::none(), 2)
    }

    fn allowed(range: &str) -> Vteps {
        let range = vec![range.parse().unwrap()];
        Vteps::new(&Peers { range, ..Peers::default() }).unwrap()
    }

    #[test]
    fn who_is_not_allowed_any_more_gets_nothing() {
        let mut networks = Networks::default();
        networks.insert(entry(5));
        networks.learn(0, vni(5), mac(1), vtep(2), 0);
        networks.learn(0, vni(5), mac(2), vtep(130), 0);
        networks.get_mut(vni(5)).unwrap().set_peers(vec![vtep(2), vtep(130)]);
        let fewer = allowed("10.0.0.0/25");
        networks.follow(&fewer);
        let (tables, _) = networks.tables(&fewer);
        let table = tables[0].as_ref().unwrap();
        assert_eq!(table.flood, [vtep(2)]);
        assert_eq!(table.fdb.keys().collect::<Vec<_>>(), [&mac(1)]);
        let all = allowed("10.0.0.0/24");
        networks.follow(&all);
        let (tables, _) = networks.tables(&all);
        assert_eq!(tables[0].as_ref().unwrap().flood, [vtep(2), vtep(130)], "listed still");
    }

    #[test]
    fn slots_stay_and_are_reused() {
        let mut networks = Networks::default();
        assert_eq!((networks.insert(entry(5)), networks.insert(entry(6)), networks.len()), (0, 1, 2));
        let (slot, removed) = networks.remove(vni(5)).unwrap();
        assert_eq!((slot, removed.network.vni), (0, vni(5)));
        assert!(networks.remove(vni(5)).is_none());
        let (tables, slots) = networks.tables(&allowed("10.0.0.0/24"));
        assert!(tables[0].is_none());
        assert_eq!(tables[1].as_ref().unwrap().vni, vni(6));
        assert_eq!((slots.get(&vni(6)), slots.len()), (Some(&1), 1));
        assert_eq!(networks.insert(entry(7)), 0);
    }

    #[test]
    fn a_table_is_rebuilt_only_after_a_change() {
        let mut networks = Networks::default();
        networks.insert(entry(5));
        networks.insert(entry(6));
        let (before, _) = networks.tables(&allowed("10.0.0.0/24"));
        networks.get_mut(vni(6)).unwrap().set_peers(vec![vtep(3)]);
        let (after, _) = networks.tables(&allowed("10.0.0.0/24"));
        let same = |slot: usize| Arc::ptr_eq(before[slot].as_ref().unwrap(), after[slot].as_ref().unwrap());
        assert!(same(0) && !same(1));
        assert_eq!(before[1].as_ref().unwrap().flood, [vtep(2)]);
        assert_eq!(after[1].as_ref().unwrap().flood, [vtep(3)]);
    }

    #[test]
    fn learning_is_bounded_and_ages() {
        let mut networks = Networks::default();
        networks.insert(entry(5));
        assert!(networks.learn(0, vni(5), mac(1), vtep(2), 100));
        assert!(!networks.learn(0, vni(5), mac(1), vtep(2), 101), "known");
        assert!(networks.learn(0, vni(5), mac(1), vtep(3), 102), "moved");
        assert!(!networks.learn(0, vni(5), OWN, vtep(3), 102), "the endpoint's own");
        assert!(!networks.learn(0, vni(5), Mac::BROADCAST, vtep(3), 102));
        assert!(!networks.learn(0, vni(6), mac(2), vtep(3), 102), "another network's slot by now");
        assert!(networks.learn(0, vni(5), mac(2), vtep(3), 105));
        assert!(!networks.learn(0, vni(5), mac(3), vtep(3), 105), "full");
        let (tables, _) = networks.tables(&allowed("10.0.0.0/24"));
        let fdb = &tables[0].as_ref().unwrap().fdb;
        assert_eq!((fdb.len(), fdb[&mac(1)].vtep), (2, vtep(3)));
        assert!(!networks.age(112));
        // A worker sees it through its tables.
        fdb[&mac(1)].refresh(112);
        assert!(networks.age(116));
        let (tables, _) = networks.tables(&allowed("10.0.0.0/24"));
        assert_eq!(tables[0].as_ref().unwrap().fdb.keys().collect::<Vec<_>>(), [&mac(1)]);
    }

    /// Workers that do not read the endpoint take no share of it.
    #[test]
    fn a_network_floods_at_its_rate_whatever_the_number_of_workers() {
        let mut networks = Networks::default();
        networks.insert(entry(5));
        networks.set_workers(64);
        let (tables, _) = networks.tables(&allowed("10.0.0.0/24"));
        assert_eq!(tables[0].as_ref().unwrap().flood_rate, 1000);
    }

    #[test]
    fn a_network_that_does_not_learn_does_not() {
        let mut networks = Networks::default();
        let mut deterministic = entry(5);
        deterministic.network.learning = false;
        networks.insert(deterministic);
        assert!(!networks.learn(0, vni(5), mac(1), vtep(2), 0));
    }

    #[test]
    fn counts_add_up_and_survive_new_workers() {
        let mut networks = Networks::default();
        networks.insert(entry(5));
        let (tables, _) = networks.tables(&allowed("10.0.0.0/24"));
        let counters = &tables[0].as_ref().unwrap().counters;
        counters[0].rx_frames.add(2);
        counters[1].rx_frames.add(3);
        counters[1].dropped(Drop::TooBig, 1);
        networks.set_workers(1);
        let (tables, _) = networks.tables(&allowed("10.0.0.0/24"));
        let counters = &tables[0].as_ref().unwrap().counters;
        assert_eq!(counters.len(), 1);
        counters[0].rx_frames.add(4);
        let counts = networks.get(vni(5)).unwrap().1.counts();
        assert_eq!(counts.rx_frames, 9);
        assert_eq!(counts.drops.into_iter().collect::<Vec<_>>(), [("tx_too_big".into(), 1)]);
    }
}

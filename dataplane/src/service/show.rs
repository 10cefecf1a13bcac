//! Answers that change nothing.

use super::Service;
use super::request::failed;
use crate::gear::Gear;
use crate::networks::Entry;
use crate::port::link::Sending;
use hdrhistogram::Histogram;
use std::net::IpAddr;
use uvn_api::dataplane::message::{HopState, NetworkState, Reply, Residency, State, Summary, UnknownVni};
use uvn_api::protocol::{Failure, fitting};
use uvn_engine::worker::Report;
use uvn_wire::xdp::Verdict;

impl Service {
    pub(super) fn summary(&self) -> Summary {
        let state = match &self.link {
            None => State::Absent,
            Some(link) if !link.up => State::Down,
            Some(_) if self.fault.is_some() => State::Failed,
            Some(_) => State::Running,
        };
        let (resolved, unresolved): (Vec<_>, Vec<_>) =
            self.underlay.wanted().partition(|(_, hop)| hop.is_some());
        let (single, ranges) = self.vteps.listed();
        let mut summary = Summary {
            nic: self.config.nic.clone(),
            fault: self.fault.clone().filter(|_| state == State::Failed),
            state,
            mtu: self.link.as_ref().map_or(0, |link| link.mtu as usize),
            mac: self.link.as_ref().and_then(|link| link.mac).map(|mac| mac.to_string()).unwrap_or_default(),
            vtep: self.config.vtep.clone(),
            port: self.config.encapsulation.port,
            xdp: None,
            zero_copy: None,
            gear: None,
            gear_reason: None,
            boost: None,
            workers: Vec::new(),
            epoch: self.tables.epoch,
            networks: self.networks.len(),
            shortcut: 0,
            waiting: 0,
            hops: resolved.len(),
            unresolved: unresolved.len(),
            vteps: single.count(),
            ranges: ranges.iter().copied().take(64).collect(),
            notes: self.notes(),
        };
        if let Some(gear) = &self.gear {
            gear.show(&mut summary);
        }
        summary
    }

    pub(super) fn show_networks(&self, from: u32) -> Reply {
        let mut entries: Vec<&Entry> = self
            .networks
            .iter()
            .map(|(_, entry)| entry)
            .filter(|entry| entry.network.vni.get() >= from)
            .collect();
        entries.sort_by_key(|entry| entry.network.vni);
        let gear = self.gear.as_ref();
        // Each is asked for once, since the kernel must be asked, too.
        let mut networks = Vec::new();
        let states = entries.iter().map(|entry| {
            networks.push(state_of(entry, gear));
            networks.last().cloned()
        });
        let count = fitting(states).max(1);
        let next = entries.get(count).map(|entry| entry.network.vni.get());
        networks.truncate(count);
        Reply::Networks { networks, next }
    }

    pub(super) fn show_hops(&self, from: Option<IpAddr>) -> Reply {
        let states: Vec<HopState> = self
            .underlay
            .wanted()
            .filter(|(address, _)| from.is_none_or(|from| *address >= from))
            .map(|(address, hop)| HopState {
                address,
                mac: hop.map(|hop| hop.mac.to_string()),
                mtu: hop.map(|hop| hop.mtu),
            })
            .collect();
        let count = fitting(&states);
        let next = states.get(count).map(|state| state.address);
        Reply::Hops { hops: states.into_iter().take(count).collect(), next }
    }

    pub(super) fn show_counters(&self) -> Result<Reply, Failure> {
        let mut workers = Vec::new();
        let mut total = self.past.clone();
        self.networks.iter().for_each(|(_, entry)| total.add_dropped(entry.source.sending().dropped));
        let mut xdp = std::collections::BTreeMap::new();
        if let Some(gear) = &self.gear {
            workers = gear.counts(&mut total);
            let verdicts = gear.verdicts().map_err(failed)?;
            xdp.extend(
                Verdict::ALL.iter().zip(verdicts).map(|(verdict, count)| (verdict.name().into(), count)),
            );
        }
        let lost = self.reports()?.iter().map(|report| report.lost).sum();
        Ok(Reply::Counters { total, workers, xdp, lost })
    }

    pub(super) fn take_unknown(&mut self) -> Result<Reply, Failure> {
        let Some(gear) = &mut self.gear else { return Ok(Reply::Unknown { seen: Vec::new() }) };
        let taken = gear.take_unknown().map_err(failed)?;
        let seen = taken
            .into_iter()
            .map(|(vni, vtep, frames)| UnknownVni { vni: vni.get(), vtep, frames })
            .collect();
        Ok(Reply::Unknown { seen })
    }

    pub(super) fn show_histogram(&self) -> Result<Reply, Failure> {
        let mut all: Option<Histogram<u64>> = None;
        for report in self.reports()? {
            match &mut all {
                None => all = Some(report.residency),
                // All have the same bounds, so this cannot fail.
                Some(all) => drop(all.add(report.residency)),
            }
        }
        let at = |quantile| all.as_ref().map_or(0, |all| all.value_at_quantile(quantile));
        Ok(Reply::Histogram(Residency {
            batches: all.as_ref().map_or(0, Histogram::len),
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: all.as_ref().map_or(0, Histogram::max),
        }))
    }

    /// The measurements of every worker.
    fn reports(&self) -> Result<Vec<Report>, Failure> {
        self.gear.as_ref().map_or(Ok(Vec::new()), Gear::reports).map_err(failed)
    }
}

fn state_of(entry: &Entry, gear: Option<&Gear>) -> NetworkState {
    /// The most destinations shown: a list of thousands would leave no room for others.
    const FLOOD_SHOWN: usize = 16;
    let vni = entry.network.vni;
    let mut counts = entry.counts();
    let Sending { up, dropped } = entry.source.sending();
    counts.add_dropped(dropped);
    let mut notes = entry.notes();
    if !up {
        notes.push("its endpoint is down: nothing reaches the user, and nothing leaves him".into());
    }
    let mut state = NetworkState {
        vni: vni.get(),
        addresses: entry.network.addresses.clone(),
        mac: entry.mac.to_string(),
        device: entry.source.made().map(|device| device.name.clone()),
        endpoint: entry.source.place().filter(|_| entry.fault.is_none()),
        fault: entry.fault.clone(),
        notes,
        flood: entry.flood().take(FLOOD_SHOWN).collect(),
        flood_count: entry.flood().count(),
        learned: entry.learned(),
        shortcut: false,
        waiting: false,
        counts,
    };
    if let Some(gear) = gear {
        gear.show_network(vni, &mut state);
    }
    state
}

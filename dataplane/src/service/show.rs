//! Answers that change nothing.

use super::Service;
use crate::gear::Queues;
use crate::gear::programs::Mode;
use crate::gear::shortcut::Shortcut;
use crate::networks::Entry;
use crate::port::link::Sending;
use crossbeam::channel::unbounded;
use hdrhistogram::Histogram;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};
use uvn_api::dataplane::message::{
    Counts, HopState, NetworkState, Reply, Residency, Summary, UnknownVni, WorkerState,
};
use uvn_api::protocol::{Code, Failure, fitting};
use uvn_engine::worker::{Command, Report};
use uvn_wire::xdp::Verdict;

impl Service {
    pub(super) fn summary(&self) -> Summary {
        let running = self.queues.as_ref();
        let workers = running.iter().flat_map(|queues| &queues.workers).map(|worker| WorkerState {
            queue: worker.queue as usize,
            core: worker.core,
            epoch: worker.handle.status.epoch.load(Acquire),
        });
        let is_up = self.link.as_ref().is_some_and(|link| link.up);
        let state = match &self.fault {
            Some(fault) => fault.as_str(),
            None if is_up => "running",
            None => "down",
        };
        let (resolved, unresolved): (Vec<_>, Vec<_>) =
            self.underlay.wanted().partition(|(_, hop)| hop.is_some());
        Summary {
            nic: self.config.nic.clone(),
            state: state.into(),
            mtu: self.link.as_ref().map_or(0, |link| link.mtu as usize),
            mac: self.link.as_ref().and_then(|link| link.mac).map(|mac| mac.to_string()).unwrap_or_default(),
            vtep: self.config.vtep.clone(),
            port: self.config.encapsulation.port,
            xdp: running.and_then(|queues| queues.xdp.mode()).map(|mode| match mode {
                Mode::Driver => "driver".into(),
                Mode::Generic { .. } => "generic".into(),
            }),
            zero_copy: running.and_then(|queues| queues.zero_copy),
            gear: running.map(|queues| queues.gear().into()),
            gear_reason: running.map(|queues| queues.gear_reason()),
            boost: running.and_then(Queues::boost),
            workers: workers.collect(),
            epoch: self.tables.epoch,
            networks: self.networks.len(),
            shortcut: running.and_then(|queues| queues.shortcut.as_ref()).map_or(0, Shortcut::networks),
            waiting: running.map_or(0, |queues| queues.waiting.len()),
            hops: resolved.len(),
            unresolved: unresolved.len(),
            vteps: self.peers.vtep.len(),
            ranges: self.peers.range.iter().copied().take(64).collect(),
            notes: self.notes(),
        }
    }

    pub(super) fn show_networks(&self, from: u32) -> Reply {
        let mut entries: Vec<&Entry> = self
            .networks
            .iter()
            .map(|(_, entry)| entry)
            .filter(|entry| entry.network.vni.get() >= from)
            .collect();
        entries.sort_by_key(|entry| entry.network.vni);
        let queues = self.queues.as_ref();
        // Each is asked for once: the kernel has to be asked, too.
        let mut networks = Vec::new();
        let states = entries.iter().map(|entry| {
            networks.push(state_of(entry, queues));
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
        if let Some(queues) = &self.queues {
            for worker in &queues.workers {
                let mut counts = Counts::default();
                worker.handle.status.counters.add_to(&mut counts);
                worker.handle.status.counters.add_to(&mut total);
                workers.push(counts);
            }
            if let Some(shortcut) = &queues.shortcut {
                total.add_traffic(&shortcut.total());
            }
            let verdicts =
                queues.xdp.counters().map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
            xdp.extend(
                Verdict::ALL.iter().zip(verdicts).map(|(verdict, count)| (verdict.name().into(), count)),
            );
        }
        let lost = self.reports()?.iter().map(|report| report.lost).sum();
        Ok(Reply::Counters { total, workers, xdp, lost })
    }

    pub(super) fn take_unknown(&mut self) -> Result<Reply, Failure> {
        let Some(queues) = &mut self.queues else { return Ok(Reply::Unknown { seen: Vec::new() }) };
        let taken =
            queues.xdp.take_unknown().map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
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

    /// What every worker has measured.
    fn reports(&self) -> Result<Vec<Report>, Failure> {
        let Some(queues) = &self.queues else { return Ok(Vec::new()) };
        let (sender, receiver) = unbounded();
        queues.send(|| Command::Report(sender.clone()));
        let end = Instant::now() + Duration::from_secs(3);
        let reports: Vec<Report> =
            queues.workers.iter().map_while(|_| receiver.recv_deadline(end).ok()).collect();
        if reports.len() < queues.workers.len() {
            return Err(Failure::new(Code::Failed, "a worker does not answer"));
        }
        Ok(reports)
    }
}

fn state_of(entry: &Entry, queues: Option<&Queues>) -> NetworkState {
    /// A list of thousands would leave no room for others.
    const FLOOD_SHOWN: usize = 16;
    let vni = entry.network.vni;
    let shortcut = queues.and_then(|queues| queues.shortcut.as_ref());
    let mut counts = entry.counts();
    if let Some(shortcut) = shortcut {
        counts.add_traffic(&shortcut.traffic(vni));
    }
    let Sending { up, dropped } = entry.source.sending();
    counts.add_dropped(dropped);
    let mut notes = entry.notes();
    if !up {
        notes.push("its endpoint is down: nothing reaches the user, and nothing leaves him".into());
    }
    NetworkState {
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
        shortcut: shortcut.is_some_and(|shortcut| shortcut.carries(vni)),
        waiting: queues.is_some_and(|queues| queues.waiting.contains(vni)),
        counts,
    }
}

//! From the NIC to the endpoints: verify, join, hand over.

use super::{Event, Worker, count_drop};
use crate::counters::Drop;
use crate::decap::{self, decap};
use crate::gro::Delivery;
use crate::port::{MAX_PARTS, Nic, VnetHeader};
use crate::tables::Tables;
use std::io::IoSlice;
use std::mem;
use std::ops::Range;
use uvn_wire::packet;

impl<N: Nic> Worker<N> {
    /// Receives one batch; how many frames it had.
    pub(super) fn ingress(&mut self) -> usize {
        let mut batch = mem::take(&mut self.batch);
        let count = self.nic.receive(&mut batch);
        if count > 0 {
            let tables = self.tables.clone();
            self.inner.clear();
            for (index, frame) in batch.iter_mut().enumerate() {
                let inner = self.verify(&tables, index as u32, frame);
                self.inner.push(inner);
            }
            self.deliver(&tables, &batch);
            for frame in batch.drain(..) {
                self.nic.release(frame);
            }
        }
        self.batch = batch;
        count
    }

    /// Decapsulates a frame and hands it to GRO; where the inner frame lies.
    fn verify(&mut self, tables: &Tables, index: u32, frame: &mut N::Frame) -> Range<usize> {
        let received = match decap(tables, self.nic.bytes(frame), self.second) {
            Ok(received) => received,
            Err(rejected) => {
                let network = rejected.slot.and_then(|slot| tables.by_slot(slot));
                count_drop(&self.status, network, self.queue, rejected.reason, 1);
                return 0..0;
            }
        };
        if let Some(mac) = received.learn
            && let Some(network) = tables.by_slot(received.slot)
        {
            self.tell(Event::Learned { slot: received.slot, vni: network.vni, mac, vtep: received.vtep });
        }
        if let Some(ecn) = received.ecn {
            decap::set_ecn(&mut self.nic.bytes_mut(frame)[received.inner.clone()], ecn);
        }
        let offloads = self.endpoints.offloads(received.slot);
        let inner = &self.nic.bytes(frame)[received.inner.clone()];
        if let Ok(packet) = packet::parse(inner) {
            self.gro.push(received.slot, index, inner, &packet, offloads);
        }
        received.inner
    }

    /// Writes what GRO made of the batch to the endpoints.
    fn deliver(&mut self, tables: &Tables, batch: &[N::Frame]) {
        let mut gro = mem::take(&mut self.gro);
        gro.flush(|delivery| {
            let inner = |index: u32| {
                let frame = batch.get(index as usize).map(|frame| self.nic.bytes(frame));
                frame.and_then(|bytes| bytes.get(self.inner.get(index as usize)?.clone())).unwrap_or_default()
            };
            let (slot, frames, bytes, sent) = match &delivery {
                Delivery::Single { network, index } => {
                    let frame = inner(*index);
                    let parts = [IoSlice::new(frame)];
                    let sent = self.endpoints.send(*network, &VnetHeader::default(), &parts);
                    (*network, 1, frame.len(), sent)
                }
                Delivery::Super(coalesced) => {
                    let mut parts = [IoSlice::new(coalesced.head()); MAX_PARTS];
                    let mut bytes = coalesced.segments() * coalesced.head().len();
                    for (part, (index, range)) in parts[1..].iter_mut().zip(coalesced.parts()) {
                        *part = IoSlice::new(inner(index).get(range).unwrap_or_default());
                        bytes += part.len();
                    }
                    let parts = parts.get(..=coalesced.segments()).unwrap_or_default();
                    let sent = self.endpoints.send(coalesced.network(), &coalesced.header(), parts);
                    (coalesced.network(), coalesced.segments() as u64, bytes, sent)
                }
            };
            let Some(network) = tables.by_slot(slot) else { return };
            if sent.as_ref().is_ok_and(|sent| *sent) {
                for counters in [&self.status.counters, &network.counters[self.queue]] {
                    counters.rx_frames.add(frames);
                    counters.rx_bytes.add(bytes as u64);
                }
            } else {
                count_drop(&self.status, Some(network), self.queue, Drop::EndpointFull, frames);
            }
            if let Err(error) = sent {
                self.tell(Event::EndpointLost { slot, error });
            }
        });
        self.gro = gro;
    }
}

//! Datagrams in fragments: each is held until it is whole, so that a datagram that has lost a fragment goes no further.
//!
//! A kernel keeps the rest of such a datagram for 30 seconds, in 4 MiB for all fragmented traffic of the node, the
//! host's own as well (net.ipv4.ipfrag_time and ipfrag_high_thresh): a user who sends faster than fragments are carried
//! would fill that up for everybody. What is held here is bounded, too: without room, the network that holds most loses
//! its oldest incomplete datagram.
//!
//! Datagrams are searched one by one, since few are incomplete at a time.

use std::mem;
use std::net::IpAddr;
use std::ops::Range;
use uvn_wire::ethernet;
use uvn_wire::packet::{self, Fragment, Ip, Packet, Piece};

/// Datagrams held at a time, at most.
const DATAGRAMS: usize = 64;
/// Bytes of all held datagrams, headers included, at most.
const BYTES: usize = 2 << 20;
/// Bytes of one datagram, at most: the longest one fits in fragments of 64 bytes or more, a short one in shorter ones.
const LONGEST: usize = 128 << 10;
/// Bytes that a place keeps allocated for its next datagram.
const KEPT: usize = 16 << 10;
/// Seconds after which a datagram will not become whole: on one subnet fragments follow each other at once.
const PATIENCE: u32 = 2;

/// A frame that holds a fragment.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    datagram: Datagram,
    piece: Piece,
    frame: &'a [u8],
}

/// What all fragments of a datagram have in common (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Datagram {
    slot: u32,
    identification: u32,
    /// The protocol in IPv4; 0 in IPv6, where identifications do not depend on it.
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
}

impl<'a> Part<'a> {
    /// The fragment in a frame of the network in `slot`. None: it is no fragment, or one that is whole by itself (RFC
    /// 6946).
    #[must_use]
    #[inline]
    pub fn of(slot: u32, frame: &'a [u8]) -> Option<Part<'a>> {
        // Nearly no frame gets further.
        if may_be_fragment(frame) { Part::parse(slot, frame) } else { None }
    }

    #[cold]
    fn parse(slot: u32, frame: &'a [u8]) -> Option<Part<'a>> {
        let Ok(Packet::Ip(ip)) = packet::parse(frame) else { return None };
        if ip.fragment == Fragment::None {
            return None;
        }
        let piece = ip.piece(frame).filter(|piece| piece.offset > 0 || piece.more)?;
        Some(Part { datagram: Datagram::of(slot, &ip, piece.identification), piece, frame })
    }
}

impl Datagram {
    fn of(slot: u32, ip: &Ip<'_>, identification: u32) -> Datagram {
        let (source, destination) = (ip.source(), ip.destination());
        let protocol = if source.is_ipv4() { ip.protocol } else { 0 };
        Datagram { slot, identification, protocol, source, destination }
    }
}

#[inline]
fn may_be_fragment(frame: &[u8]) -> bool {
    let Some(packet) = frame.get(ethernet::HEADER..) else { return false };
    match (frame[12], frame[13], packet) {
        (8, 0, [_, _, _, _, _, _, high, low, ..]) => high & 0x3f | low != 0,
        (0x86, 0xdd, [_, _, _, _, _, _, next, ..]) => packet::is_extension(*next),
        _ => false,
    }
}

/// The held datagrams.
#[derive(Debug, Default)]
pub struct Fragments {
    places: Vec<Place>,
    bytes: usize,
    /// Held bytes by slot.
    shares: Vec<usize>,
    /// Datagrams begun so far.
    begun: u64,
    /// The number of datagrams that are whole and not taken yet.
    whole: usize,
}

/// Room for one datagram.
#[derive(Debug, Default)]
struct Place {
    datagram: Option<Datagram>,
    /// [`Fragments::begun`] when the datagram was begun.
    number: u64,
    second: u32,
    /// The frames, one after the other; and for each, its range in the datagram and its range in `bytes`.
    bytes: Vec<u8>,
    pieces: Vec<(Range<usize>, Range<usize>)>,
    /// How many bytes of the datagram have come, where the last of them ends, and the datagram's length if known.
    covered: usize,
    end: usize,
    length: Option<usize>,
    /// The next fragment to be taken; None: the datagram is not whole.
    next: Option<usize>,
}

/// The outcome of adding a fragment.
enum Added {
    Held,
    Whole,
    /// The same range is held already.
    Twice,
    /// It contradicts others, or the datagram is too long: no kernel reassembles it.
    Wrong,
}

impl Fragments {
    /// Holds a fragment. True: its datagram is whole now, and must be taken by [`Fragments::next`] before another
    /// fragment of its network is added. `lost` gets the slot and number of frames that are dropped.
    pub fn push(&mut self, part: &Part<'_>, second: u32, mut lost: impl FnMut(u32, u64)) -> bool {
        let slot = part.datagram.slot;
        let length = part.frame.len();
        // Making room for the frame may drop its own datagram.
        while self.bytes + length > BYTES
            && let Some(index) = self.longest()
        {
            self.drop(index, &mut lost);
        }
        let Some(index) = self.place(&part.datagram, second, &mut lost) else {
            lost(slot, 1);
            return false;
        };
        match self.places[index].add(part) {
            added @ (Added::Held | Added::Whole) => {
                self.bytes += length;
                self.share(slot, |share| share + length);
                let is_whole = matches!(added, Added::Whole);
                self.whole += usize::from(is_whole);
                is_whole
            }
            Added::Twice => {
                lost(slot, 1);
                false
            }
            Added::Wrong => {
                lost(slot, 1);
                self.drop(index, &mut lost);
                false
            }
        }
    }

    /// The next frame of the whole datagram of a slot. None: all frames are taken, or no datagram is whole.
    pub fn next(&mut self, slot: u32) -> Option<&[u8]> {
        let index = self.whole(slot)?;
        let next = self.places[index].next?;
        if next == self.places[index].pieces.len() {
            self.drop(index, &mut |_, _| {});
            return None;
        }
        let place = &mut self.places[index];
        place.next = Some(next + 1);
        place.bytes.get(place.pieces[next].1.clone())
    }

    /// Drops the frames left of the whole datagram of a slot, and returns their number.
    pub fn drop_rest(&mut self, slot: u32) -> u64 {
        let mut left = 0;
        if let Some(index) = self.whole(slot) {
            self.drop(index, &mut |_, frames| left += frames);
        }
        left
    }

    /// Drops datagrams that have not become whole within [`PATIENCE`] seconds.
    pub fn expire(&mut self, second: u32, mut lost: impl FnMut(u32, u64)) {
        for index in 0..self.places.len() {
            let place = &self.places[index];
            if place.datagram.is_some() && place.next.is_none() && second - place.second >= PATIENCE {
                self.drop(index, &mut lost);
            }
        }
    }

    /// Drops the datagrams of a slot, uncounted.
    pub fn forget(&mut self, slot: u32) {
        for index in 0..self.places.len() {
            if self.places[index].datagram.is_some_and(|datagram| datagram.slot == slot) {
                self.drop(index, &mut |_, _| {});
            }
        }
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn whole(&self, slot: u32) -> Option<usize> {
        let is_it = |place: &Place| {
            place.next.is_some() && place.datagram.is_some_and(|datagram| datagram.slot == slot)
        };
        // Nearly always no datagram is whole.
        if self.whole == 0 { None } else { self.places.iter().position(is_it) }
    }

    /// The index of a datagram's place, new or old. None: all places hold whole datagrams.
    fn place(&mut self, datagram: &Datagram, second: u32, lost: &mut impl FnMut(u32, u64)) -> Option<usize> {
        let is = |place: &Place| place.next.is_none() && place.datagram.as_ref() == Some(datagram);
        if let Some(index) = self.places.iter().position(is) {
            return Some(index);
        }
        let mut free = self.places.iter().position(|place| place.datagram.is_none());
        if free.is_none() && self.places.len() < DATAGRAMS {
            free = Some(self.places.len());
            self.places.push(Place::default());
        }
        if free.is_none() {
            free = self.longest();
            self.drop(free?, lost);
        }
        let place = &mut self.places[free?];
        (place.datagram, place.number, place.second) = (Some(*datagram), self.begun, second);
        self.begun += 1;
        free
    }

    /// The index of the oldest incomplete datagram of the network that holds most.
    fn longest(&self) -> Option<usize> {
        let share = |datagram: Datagram| self.shares.get(datagram.slot as usize).copied().unwrap_or(0);
        let rank = |place: &Place| Some((share(place.datagram?), u64::MAX - place.number));
        let incomplete = self.places.iter().enumerate().filter(|(_, place)| place.next.is_none());
        let ranked = incomplete.filter_map(|(index, place)| Some((rank(place)?, index)));
        ranked.max().map(|(_, index)| index)
    }

    fn drop(&mut self, index: usize, lost: &mut impl FnMut(u32, u64)) {
        let place = &mut self.places[index];
        let Some(datagram) = place.datagram else { return };
        let bytes = place.bytes.len();
        self.whole -= usize::from(place.next.is_some());
        let left = place.clear();
        self.bytes -= bytes;
        self.share(datagram.slot, |share| share - bytes);
        if left > 0 {
            lost(datagram.slot, left as u64);
        }
    }

    fn share(&mut self, slot: u32, change: impl FnOnce(usize) -> usize) {
        let index = slot as usize;
        if self.shares.len() <= index {
            self.shares.resize(index + 1, 0);
        }
        self.shares[index] = change(self.shares[index]);
    }
}

impl Place {
    fn add(&mut self, part: &Part<'_>) -> Added {
        let Piece { offset, length, more, .. } = part.piece;
        let piece = offset..offset + length;
        // The kernel's rules for lengths (ip_frag_queue, net/ipv4/ip_fragment.c).
        let fits = length > 0 && (!more || length.is_multiple_of(8)) && piece.end <= 65_535;
        let room = self.bytes.len() + part.frame.len() <= LONGEST;
        let end = if more { self.length } else { Some(piece.end) };
        let is_end = end.is_none_or(|end| piece.end <= end && self.end <= end)
            && self.length.is_none_or(|length| Some(length) == end);
        if !fits || !room || !is_end {
            return Added::Wrong;
        }
        // Fragments in order cannot overlap.
        if piece.start < self.end {
            for (other, _) in &self.pieces {
                if *other == piece {
                    return Added::Twice;
                }
                if other.start < piece.end && piece.start < other.end {
                    return Added::Wrong;
                }
            }
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(part.frame);
        self.covered += length;
        self.end = self.end.max(piece.end);
        self.length = end;
        self.pieces.push((piece, start..self.bytes.len()));
        if end == Some(self.covered) {
            self.next = Some(0);
            return Added::Whole;
        }
        Added::Held
    }

    /// Empties the place, and returns how many frames have not been taken.
    fn clear(&mut self) -> usize {
        let left = self.pieces.len() - self.next.unwrap_or(0);
        let (mut bytes, mut pieces) = (mem::take(&mut self.bytes), mem::take(&mut self.pieces));
        bytes.clear();
        bytes.shrink_to(KEPT);
        pieces.clear();
        pieces.shrink_to(KEPT / size_of::<(Range<usize>, Range<usize>)>());
        *self = Place { bytes, pieces, ..Place::default() };
        left
    }
}

//! Builds TCP and UDP frames and super-frames for tests, byte by byte and with a checksum of its own.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use proptest::collection::vec;
use proptest::prelude::*;
use std::net::IpAddr;
use uvn_engine::port::VnetHeader;

/// What a frame says. `build` makes it one packet, `super_frame` one that is still to be cut.
#[derive(Debug, Clone)]
pub struct Spec {
    pub v6: bool,
    pub tcp: bool,
    pub macs: [u8; 12],
    pub addresses: (u8, u8),
    pub ports: (u16, u16),
    pub tos: u8,
    pub ttl: u8,
    pub identification: u16,
    pub dont_fragment: bool,
    pub flow_label: u32,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// TCP options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Spec {
    /// Plain TCP over IPv4 with this payload.
    pub fn tcp(payload: &[u8]) -> Spec {
        Spec {
            v6: false,
            tcp: true,
            macs: [2, 0x75, 10, 0, 0, 2, 2, 0x75, 10, 0, 0, 1],
            addresses: (1, 2),
            ports: (40_000, 5201),
            tos: 0,
            ttl: 64,
            identification: 0x1234,
            dont_fragment: true,
            flow_label: 0,
            sequence: 1000,
            acknowledgement: 2000,
            flags: 0x10,
            window: 500,
            urgent: 0,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: payload.to_vec(),
        }
    }

    /// Plain UDP over IPv4 with this payload.
    pub fn udp(payload: &[u8]) -> Spec {
        Spec { tcp: false, options: Vec::new(), ..Spec::tcp(payload) }
    }

    fn source(&self) -> Vec<u8> {
        self.address(self.addresses.0)
    }

    fn destination(&self) -> Vec<u8> {
        self.address(self.addresses.1)
    }

    /// The address that ends so.
    pub fn address_of(&self, last: u8) -> IpAddr {
        let bytes = self.address(last);
        match <[u8; 4]>::try_from(&bytes[..]) {
            Ok(bytes) => bytes.into(),
            Err(_) => <[u8; 16]>::try_from(&bytes[..]).expect("an address").into(),
        }
    }

    fn address(&self, last: u8) -> Vec<u8> {
        if self.v6 { [&[0xfd; 15][..], &[last]].concat() } else { vec![10, 0, 0, last] }
    }

    fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }

    fn transport_header(&self, length: usize) -> Vec<u8> {
        let mut header = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        if self.tcp {
            header.extend(self.sequence.to_be_bytes());
            header.extend(self.acknowledgement.to_be_bytes());
            header.extend([((20 + self.options.len()) as u8 / 4) << 4, self.flags]);
            header.extend(self.window.to_be_bytes());
            header.extend([0, 0]);
            header.extend(self.urgent.to_be_bytes());
            header.extend(&self.options);
        } else {
            header.extend((length as u16).to_be_bytes());
            header.extend([0, 0]);
        }
        header
    }

    fn transport_header_length(&self) -> usize {
        if self.tcp { 20 + self.options.len() } else { 8 }
    }

    fn network_header_length(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    /// Length of all headers.
    pub fn headers(&self) -> usize {
        14 + self.network_header_length() + self.transport_header_length()
    }

    fn checksum_field(&self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    fn network_header(&self, transport_length: usize) -> Vec<u8> {
        let mut header = Vec::new();
        if self.v6 {
            header.extend((6 << 28 | u32::from(self.tos) << 20 | self.flow_label).to_be_bytes());
            header.extend((transport_length as u16).to_be_bytes());
            header.extend([self.protocol(), self.ttl]);
        } else {
            header.extend([0x45, self.tos]);
            header.extend((20 + transport_length as u16).to_be_bytes());
            header.extend(self.identification.to_be_bytes());
            header.extend([u8::from(self.dont_fragment) << 6, 0, self.ttl, self.protocol(), 0, 0]);
        }
        header.extend(self.source());
        header.extend(self.destination());
        if !self.v6 {
            let checksum = !sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        header
    }

    fn pseudo_header(&self, transport_length: usize) -> Vec<u8> {
        let mut pseudo = [self.source(), self.destination()].concat();
        pseudo.extend(u32::from(self.protocol()).to_be_bytes());
        pseudo.extend((transport_length as u32).to_be_bytes());
        pseudo
    }

    /// The frame, and where its transport checksum is.
    fn frame(&self) -> (Vec<u8>, usize) {
        let transport_length = self.transport_header_length() + self.payload.len();
        let mut frame = self.macs.to_vec();
        frame.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(self.network_header(transport_length));
        let start = frame.len();
        frame.extend(self.transport_header(transport_length));
        frame.extend(&self.payload);
        (frame, start)
    }

    /// The frame with all checksums.
    pub fn build(&self) -> Vec<u8> {
        let (mut frame, start) = self.frame();
        let covered = [self.pseudo_header(frame.len() - start), frame[start..].to_vec()].concat();
        let checksum = match !sum(&covered) {
            0 if !self.tcp => 0xffff,
            checksum => checksum,
        };
        let field = start + self.checksum_field();
        frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    /// The frame as the kernel hands it over when it leaves cutting it into `size` bytes of payload to the device.
    /// With `size` zero only the checksum is left.
    pub fn super_frame(&self, size: u16) -> (VnetHeader, Vec<u8>) {
        let (mut frame, start) = self.frame();
        let partial = sum(&self.pseudo_header(frame.len() - start));
        let field = start + self.checksum_field();
        frame[field..field + 2].copy_from_slice(&partial.to_be_bytes());
        let kind = match (self.tcp, self.v6) {
            _ if size == 0 => VnetHeader::GSO_NONE,
            (true, false) => VnetHeader::GSO_TCPV4,
            (true, true) => VnetHeader::GSO_TCPV6,
            (false, _) => VnetHeader::GSO_UDP,
        };
        let congestion = if self.tcp && size > 0 && self.flags & 0x80 != 0 { VnetHeader::GSO_ECN } else { 0 };
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            gso_type: kind | congestion,
            header_length: if size == 0 { 0 } else { self.headers() as u16 },
            gso_size: size,
            checksum_start: start as u16,
            checksum_offset: self.checksum_field() as u16,
        };
        (header, frame)
    }

    /// The segments of `super_frame(size)`, each built on its own.
    pub fn segments(&self, size: u16) -> Vec<Spec> {
        let parts: Vec<&[u8]> = self.payload.chunks(usize::from(size)).collect();
        let last = parts.len() - 1;
        let segment = |(number, payload): (usize, &&[u8])| {
            let mut flags = self.flags;
            if number > 0 {
                flags &= !0x80;
            }
            if number < last {
                flags &= !0x09;
            }
            Spec {
                identification: self.identification.wrapping_add(number as u16),
                sequence: self.sequence.wrapping_add(number as u32 * u32::from(size)),
                flags,
                payload: payload.to_vec(),
                ..self.clone()
            }
        };
        parts.iter().enumerate().map(segment).collect()
    }
}

/// RFC 1071 section 4.1, word by word; not complemented.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Any TCP or UDP packet with 1 to `longest` bytes of payload.
pub fn spec(longest: usize) -> impl Strategy<Value = Spec> {
    let network = (any::<bool>(), any::<u8>(), 1u8.., any::<u16>(), any::<bool>(), 0u32..1 << 20);
    let flags = prop_oneof![Just(0x10u8), Just(0x18), Just(0x11), Just(0x19), Just(0x50)];
    let tcp = (any::<u32>(), any::<u32>(), flags, any::<u16>(), vec(any::<u32>(), 0..=10));
    let ports = (any::<bool>(), 1u16.., 1u16..);
    // The bytes come from a seed: shrinking them one by one says nothing and takes long.
    (network, tcp, ports, 1..=longest, any::<u32>()).prop_map(|(network, tcp, ports, length, seed)| {
        let (v6, tos, ttl, identification, dont_fragment, flow_label) = network;
        let (sequence, acknowledgement, flags, window, options) = tcp;
        let options = if ports.0 { options } else { Vec::new() };
        Spec {
            v6,
            tcp: ports.0,
            ports: (ports.1, ports.2),
            tos,
            ttl,
            identification,
            dont_fragment,
            flow_label,
            sequence,
            acknowledgement,
            flags,
            window,
            options: options.iter().flat_map(|word| word.to_be_bytes()).collect(),
            payload: bytes(length, seed),
            ..Spec::tcp(&[])
        }
    })
}

/// Bytes that depend on `seed` alone (a linear congruential generator).
pub fn bytes(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

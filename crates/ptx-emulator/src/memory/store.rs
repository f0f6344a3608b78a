//! A range of bytes that knows which of them are defined and who touched them.

use super::race::{Moment, Other, Shadow, Touch};

const UNDEFINED: u8 = 0;
const DEFINED: u8 = 1;
/// Target of an asynchronous copy that has not been waited for.
const IN_FLIGHT: u8 = 2;

/// Why an access inside the range is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Undefined,
    InFlight,
    Race(Other),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) bytes: Vec<u8>,
    state: Vec<u8>,
    pub(crate) shadow: Shadow,
}

impl Store {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            bytes: vec![0; bytes],
            state: vec![UNDEFINED; bytes],
            shadow: Shadow::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Makes it a range of so many undefined bytes.
    pub(crate) fn reset(&mut self, bytes: usize) {
        self.state.clear();
        self.state.resize(bytes, UNDEFINED);
        self.bytes.resize(bytes, 0);
    }

    pub(crate) fn is_defined(&self, at: usize, bytes: usize) -> bool {
        self.first_undefined(at, bytes).is_none()
    }

    pub(crate) fn first_undefined(&self, at: usize, bytes: usize) -> Option<usize> {
        self.state[at..at + bytes]
            .iter()
            .position(|s| *s != DEFINED)
            .map(|i| at + i)
    }

    /// Bytes from the host.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.state[at..at + bytes.len()].fill(DEFINED);
    }

    pub(crate) fn fill(&mut self, at: usize, byte: u8, count: usize) {
        self.bytes[at..at + count].fill(byte);
        self.state[at..at + count].fill(DEFINED);
    }

    /// A part with what is known of it.
    pub(crate) fn part(&self, at: usize, bytes: usize) -> (Vec<u8>, Vec<u8>) {
        (
            self.bytes[at..at + bytes].to_vec(),
            self.state[at..at + bytes].to_vec(),
        )
    }

    pub(crate) fn put_part(&mut self, at: usize, part: &(Vec<u8>, Vec<u8>)) {
        self.bytes[at..at + part.0.len()].copy_from_slice(&part.0);
        self.state[at..at + part.1.len()].copy_from_slice(&part.1);
    }

    /// What is known of N bytes; bytes past them count as defined.
    #[inline(always)]
    fn states<const N: usize>(&self, at: usize) -> u64 {
        let mut word = [DEFINED; 8];
        word[..N].copy_from_slice(&self.state[at..at + N]);
        u64::from_le_bytes(word)
    }

    #[cold]
    fn trouble(states: u64) -> Trouble {
        if states.to_le_bytes().contains(&IN_FLIGHT) {
            Trouble::InFlight
        } else {
            Trouble::Undefined
        }
    }

    #[inline(always)]
    fn touch(
        &mut self,
        at: usize,
        bytes: usize,
        touch: Touch,
        moment: Option<&Moment>,
    ) -> Result<(), Trouble> {
        match moment {
            Some(moment) => {
                let size = self.bytes.len();
                self.shadow
                    .touch(at, bytes, size, touch, moment)
                    .map_err(Trouble::Race)
            }
            None => Ok(()),
        }
    }

    /// Reads N = 1, 2, 4 or 8 bytes inside the range.
    #[inline(always)]
    pub(crate) fn load<const N: usize>(
        &mut self,
        at: usize,
        touch: Touch,
        moment: Option<&Moment>,
    ) -> Result<u64, Trouble> {
        let states = self.states::<N>(at);
        if states != u64::from_le_bytes([DEFINED; 8]) {
            return Err(Self::trouble(states));
        }
        self.touch(at, N, touch, moment)?;
        let mut word = [0; 8];
        word[..N].copy_from_slice(&self.bytes[at..at + N]);
        Ok(u64::from_le_bytes(word))
    }

    /// Writes N = 1, 2, 4 or 8 bytes inside the range.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(
        &mut self,
        at: usize,
        value: u64,
        touch: Touch,
        moment: Option<&Moment>,
    ) -> Result<(), Trouble> {
        let states = self.states::<N>(at);
        if states != u64::from_le_bytes([DEFINED; 8]) && states.to_le_bytes().contains(&IN_FLIGHT) {
            return Err(Trouble::InFlight);
        }
        self.touch(at, N, touch, moment)?;
        self.bytes[at..at + N].copy_from_slice(&value.to_le_bytes()[..N]);
        self.state[at..at + N].fill(DEFINED);
        Ok(())
    }

    /// Announces a copy to here.
    pub(crate) fn begin_copy(
        &mut self,
        at: usize,
        bytes: usize,
        moment: Option<&Moment>,
    ) -> Result<(), Trouble> {
        if self.state[at..at + bytes].contains(&IN_FLIGHT) {
            return Err(Trouble::InFlight);
        }
        self.touch(at, bytes, Touch::Write, moment)?;
        self.state[at..at + bytes].fill(IN_FLIGHT);
        Ok(())
    }

    /// Performs a copy announced before.
    pub(crate) fn end_copy(
        &mut self,
        at: usize,
        bytes: &[u8],
        moment: Option<&Moment>,
    ) -> Result<(), Trouble> {
        self.touch(at, bytes.len(), Touch::Write, moment)?;
        self.put(at, bytes);
        Ok(())
    }
}

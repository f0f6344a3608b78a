//! The proof of packed layers: unpacked again from the written file.

use super::read::ReadScheme;
use super::{Packed, PackedShape};
use crate::checkpoint::{CheckpointSource, ExpectedLayer};
use crate::{Error, Result};

impl Packed {
    /// Unpacks a layer and counts its zeros: codes that are their zero point.
    pub(in super::super) fn prove(
        &self,
        source: &dyn CheckpointSource,
        shape: &PackedShape,
        expected: Option<&ExpectedLayer>,
    ) -> Result<()> {
        let name = &shape.name;
        let zero = ReadScheme::from(self.scheme).read(source, shape)?.zeros();
        let Some(expected) = expected else {
            return Ok(());
        };
        let found = zero.iter().filter(|&&zero| zero).count() as u64;
        if found != expected.zeros {
            let reason = format!(
                "expected the {} zeros reported, found {found}",
                expected.zeros
            );
            return Err(Error::tensor(name, reason));
        }
        let Some((zeros, group)) = expected.pattern else {
            return Ok(());
        };
        if group == 0 || !shape.cols.is_multiple_of(group) {
            let reason = format!(
                "pattern {zeros}:{group} does not fit {} columns",
                shape.cols
            );
            return Err(Error::tensor(name, reason));
        }
        let all: Vec<bool> = zero.into_iter().collect();
        let broken = all
            .chunks(group)
            .position(|group| group.iter().filter(|&&zero| zero).count() < zeros);
        match broken {
            Some(at) => Err(Error::tensor(
                name,
                format!(
                    "pattern {zeros}:{group} does not hold in row {}, group {}",
                    at * group / shape.cols,
                    at * group % shape.cols / group
                ),
            )),
            None => Ok(()),
        }
    }
}

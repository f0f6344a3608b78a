//! Solved layers: a small corpus in this crate, and the outputs of the published reference implementation
//! where the folder with them is there.

mod case;
mod corpus;
mod reference;

use sparsegpt::backend::Backend;

use crate::check::Cases;

pub(crate) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    corpus::add_cases(cases);
    reference::add_cases(cases);
}

//! A parsed module and its kernels.

use std::collections::HashMap;

use crate::decode::{self, Constants};
use crate::instruction::{Initial, Instruction, Slot};
use crate::syntax::{self, ParseError, ScalarType};

/// A module of PTX, decoded and ready to launch.
///
/// ```
/// use ptx_emulator::Module;
/// let module = Module::parse(
///     ".version 7.0 .target sm_80 .address_size 64
///      .visible .entry nothing(.param .u32 n) .reqntid 32 { ret; }",
/// )?;
/// assert_eq!(module.kernels()[0].parameters()[0].name, "n");
/// # Ok::<(), ptx_emulator::ParseError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Module {
    kernels: Vec<Kernel>,
    lines: Vec<String>,
    version: (u32, u32),
    target: String,
    pub(crate) constants: Vec<u8>,
}

/// One `.entry` of a module.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) parameter_bytes: usize,
    pub(crate) shared_bytes: usize,
    pub(crate) dynamic_shared: Option<usize>,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) code: Vec<Instruction>,
    pub(crate) initial: Vec<(Slot, Initial)>,
    pub(crate) slot_names: Vec<String>,
    pub(crate) predicate_names: Vec<String>,
    pub(crate) contractible_lines: Vec<u32>,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Type of an element.
    pub ty: ScalarType,
    /// Size in bytes, of all elements.
    pub bytes: usize,
    pub(crate) offset: usize,
}

impl Module {
    /// Parses and decodes a whole module.
    ///
    /// # Errors
    ///
    /// The first line that is no PTX, or is PTX outside the subset this emulator executes.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let source = syntax::parse(text)?;
        let mut constants = Constants::default();
        let mut shared = Vec::new();
        for variable in source.variables {
            match variable.space {
                syntax::VariableSpace::Shared => shared.push(variable),
                _ => constants.add(&variable)?,
            }
        }
        let mut kernels: Vec<Kernel> = Vec::new();
        for entry in source.entries {
            if kernels.iter().any(|k| k.name == entry.name) {
                return Err(ParseError::new(
                    entry.line,
                    format!("a second kernel `{}`", entry.name),
                    "names that differ",
                ));
            }
            kernels.push(decode::kernel(entry, &shared, &constants)?);
        }
        Ok(Self {
            kernels,
            lines: text.lines().map(|line| line.trim().to_owned()).collect(),
            version: source.version,
            target: source.target,
            constants: constants.bytes,
        })
    }

    /// The kernels, in the order of the text.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// The kernel of this name, if there is one.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// The PTX version the text asks for.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The target the text asks for, such as `sm_80`.
    pub fn target(&self) -> &str {
        &self.target
    }

    pub(crate) fn line(&self, line: u32) -> &str {
        self.lines
            .get((line as usize).wrapping_sub(1))
            .map_or("", String::as_str)
    }
}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters, in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Bytes of statically declared shared memory.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// Whether it uses dynamic shared memory (`.extern .shared`).
    pub fn uses_dynamic_shared(&self) -> bool {
        self.dynamic_shared.is_some()
    }

    /// `.reqntid`: the only block shape it may be launched with.
    pub fn required_threads(&self) -> Option<[u32; 3]> {
        self.required_threads
    }

    /// `.maxntid`: the product bounds the threads of a block.
    pub fn max_threads(&self) -> Option<[u32; 3]> {
        self.max_threads
    }

    /// Lines of float additions, subtractions and products without a rounding modifier. An assembler
    /// may contract such a product and sum into one fma, so the device's bits may differ from the
    /// emulator's; `.rn` forbids it.
    pub fn contractible_lines(&self) -> &[u32] {
        &self.contractible_lines
    }

    /// Registers by name, of the outermost scope that has it.
    pub(crate) fn slot_name(&self, slot: Slot) -> &str {
        self.slot_names
            .get(slot as usize)
            .map_or("?", String::as_str)
    }

    pub(crate) fn predicate_name(&self, predicate: u32) -> &str {
        self.predicate_names
            .get(predicate as usize)
            .map_or("?", String::as_str)
    }
}

/// Where the names of module scope live.
pub(crate) type Addresses = HashMap<String, u64>;

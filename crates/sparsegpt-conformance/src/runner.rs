//! Running the cases and saying how it went.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Completion, Conclusion, Failed, Trial};
use sparsegpt::Solver;
use sparsegpt::backend::Backend;
use sparsegpt::error::{BackendError, BackendErrorKind};

use crate::check::{Case, Cases, Failure, Subject};
use crate::{golden, operations, solving};

/// Set to `1`, a device that is not there is a failure and no reason to skip.
const REQUIRE_DEVICE: &str = "SPARSEGPT_REQUIRE_DEVICE";

/// The exit code of the standard test harness for failures.
const FAILED: u8 = 101;

/// Runs the whole suite on a backend and prints the result: the `main` of a test with `harness = false`.
///
/// `make` builds the backend; it is called once at the start and again where a case compares two values. The
/// arguments of the command line are those of the standard test harness (`--list`, filters, …).
///
/// | `make` returns | the suite |
/// |---|---|
/// | a backend | runs |
/// | an error of kind [`DeviceUnavailable`](BackendErrorKind::DeviceUnavailable) | shows every case as ignored, prints the reason and the count, and succeeds; with the environment variable `SPARSEGPT_REQUIRE_DEVICE=1` it fails |
/// | any other error | fails |
///
/// ```no_run
/// use sparsegpt::backend::Host;
///
/// fn main() -> std::process::ExitCode {
///     sparsegpt_conformance::run("host", || Ok(Host))
/// }
/// ```
pub fn run<B: Backend>(
    name: &str,
    make: impl Fn() -> Result<B, B::Error> + Send + Sync + 'static,
) -> ExitCode {
    Suite::new().with(name, make).run()
}

/// The suite on several backends, or on one with several settings, in one test program; see [`run`] for one.
///
/// ```no_run
/// use sparsegpt::backend::Host;
/// use sparsegpt_conformance::Suite;
///
/// fn main() -> std::process::ExitCode {
///     Suite::new().with("first", || Ok(Host)).with("second", || Ok(Host)).run()
/// }
/// ```
#[derive(Default)]
#[must_use]
pub struct Suite {
    members: Vec<Member>,
}

type Starter = Box<dyn FnOnce(&Request) -> Result<Started, String>>;

struct Member {
    name: String,
    start: Starter,
}

impl std::fmt::Debug for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.members.iter().map(|member| &member.name))
            .finish()
    }
}

/// What the caller of the test program wants.
struct Request {
    list_only: bool,
    require_device: bool,
}

/// The cases of one backend, ready to run.
struct Started {
    trials: Vec<Trial>,
    available: bool,
    skipped: Skipped,
}

/// Reasons for skipping, and how often each was given.
type Skipped = Arc<Mutex<BTreeMap<String, usize>>>;

impl Suite {
    /// No backend yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a backend; its cases carry `name` in front.
    pub fn with<B: Backend>(
        mut self,
        name: &str,
        make: impl Fn() -> Result<B, B::Error> + Send + Sync + 'static,
    ) -> Self {
        let member = name.to_owned();
        let start: Starter = Box::new(move |request| start(&member, make, request));
        self.members.push(Member {
            name: name.to_owned(),
            start,
        });
        self
    }

    /// Runs everything with the arguments and the environment of this process.
    pub fn run(self) -> ExitCode {
        let require_device = std::env::var(REQUIRE_DEVICE).is_ok_and(|value| value == "1");
        self.run_with(&Arguments::from_args(), require_device)
    }

    fn run_with(self, arguments: &Arguments, require_device: bool) -> ExitCode {
        let request = Request {
            list_only: arguments.list,
            require_device,
        };
        let names: Vec<String> = self
            .members
            .iter()
            .map(|member| member.name.clone())
            .collect();
        let names = names.join("; ");
        let mut trials = Vec::new();
        let mut any_available = false;
        let mut reasons = Vec::new();
        for member in self.members {
            match (member.start)(&request) {
                Ok(started) => {
                    trials.extend(started.trials);
                    any_available |= started.available;
                    reasons.push((member.name, started.skipped));
                }
                Err(error) => {
                    eprintln!(
                        "conformance of {}: cannot make the backend: {error}",
                        member.name
                    );
                    return ExitCode::from(FAILED);
                }
            }
        }
        let conclusion = libtest_mimic::run(arguments, trials);
        if arguments.list {
            return conclusion.exit_code();
        }
        println!(
            "conformance of {names}: {} passed, {} failed, {} skipped",
            conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
        );
        for (name, skipped) in reasons {
            for (reason, count) in skipped
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
            {
                println!("  {name}: {count} skipped: {reason}");
            }
        }
        if shows_nothing(&conclusion) && any_available {
            println!("conformance of {names}: FAILED, since skipped cases alone show nothing");
            return ExitCode::from(FAILED);
        }
        conclusion.exit_code()
    }
}

/// Makes the backend and its trials; an error is one that the program ends with.
fn start<B: Backend>(
    name: &str,
    make: impl Fn() -> Result<B, B::Error> + Send + Sync + 'static,
    request: &Request,
) -> Result<Started, String> {
    let subject = if request.list_only {
        Err("only listed".to_owned())
    } else {
        match make() {
            Ok(backend) => Ok(Arc::new(Subject {
                solver: Solver::new(backend),
                make: Box::new(make),
            })),
            Err(error)
                if error.kind() == BackendErrorKind::DeviceUnavailable
                    && !request.require_device =>
            {
                Err(format!("device unavailable: {error}"))
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    let available = subject.is_ok();
    let skipped = Skipped::default();
    let trials = cases::<B>()
        .into_iter()
        .map(|case| {
            let (subject, skipped) = (subject.clone(), skipped.clone());
            Trial::ignorable_test(case.name.clone(), move || {
                let verdict = match &subject {
                    Ok(subject) => case.run(subject),
                    Err(reason) => Err(Failure::Skipped(reason.clone())),
                };
                match verdict {
                    Ok(()) => Ok(Completion::Completed),
                    Err(Failure::Wrong(message)) => Err(Failed::from(message)),
                    Err(Failure::Skipped(reason)) => {
                        let mut skipped = skipped.lock().unwrap_or_else(PoisonError::into_inner);
                        *skipped.entry(reason.clone()).or_default() += 1;
                        Ok(Completion::ignored_with(reason))
                    }
                }
            })
            .with_kind(name)
        })
        .collect();
    Ok(Started {
        trials,
        available,
        skipped,
    })
}

/// Whether a run without a filter skipped every case.
fn shows_nothing(conclusion: &Conclusion) -> bool {
    conclusion.num_passed + conclusion.num_failed == 0
        && conclusion.num_filtered_out == 0
        && conclusion.num_ignored > 0
}

fn cases<B: Backend>() -> Vec<Case<B>> {
    let mut cases = Cases(Vec::new());
    operations::add_cases(&mut cases);
    solving::add_cases(&mut cases);
    golden::add_cases(&mut cases);
    cases.0
}

/// How a run of the suite ended; see [`check`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Names of the cases that passed.
    pub passed: Vec<String>,
    /// Names of the cases that failed, and what was wrong.
    pub failed: Vec<(String, String)>,
    /// Names of the cases that could not be run here, and why.
    pub skipped: Vec<(String, String)>,
}

/// Runs the suite inside a program, one case after the other, without printing.
///
/// # Errors
/// Whatever `make` returns.
///
/// ```no_run
/// use sparsegpt::backend::Host;
/// let summary = sparsegpt_conformance::check(|| Ok(Host))?;
/// assert!(summary.failed.is_empty(), "{:?}", summary.failed);
/// # Ok::<(), sparsegpt::error::HostError>(())
/// ```
pub fn check<B: Backend>(
    make: impl Fn() -> Result<B, B::Error> + Send + Sync + 'static,
) -> Result<Summary, B::Error> {
    check_matching("", make)
}

/// The same for the cases whose names contain `filter`, as in `operations/select`.
///
/// # Errors
/// Whatever `make` returns.
pub fn check_matching<B: Backend>(
    filter: &str,
    make: impl Fn() -> Result<B, B::Error> + Send + Sync + 'static,
) -> Result<Summary, B::Error> {
    check_where(|name| name.contains(filter), make)
}

/// The same for the cases whose names are wanted, so that several threads can share the suite.
///
/// # Errors
/// Whatever `make` returns.
pub fn check_where<B: Backend>(
    wanted: impl Fn(&str) -> bool,
    make: impl Fn() -> Result<B, B::Error> + Send + Sync + 'static,
) -> Result<Summary, B::Error> {
    let subject = Subject {
        solver: Solver::new(make()?),
        make: Box::new(make),
    };
    let mut summary = Summary::default();
    for case in cases().into_iter().filter(|case| wanted(&case.name)) {
        match case.run(&subject) {
            Ok(()) => summary.passed.push(case.name),
            Err(Failure::Wrong(message)) => summary.failed.push((case.name, message)),
            Err(Failure::Skipped(reason)) => summary.skipped.push((case.name, reason)),
        }
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use sparsegpt::backend::Host;
    use sparsegpt::error::HostError;

    use super::*;

    fn arguments(filter: &str) -> Arguments {
        Arguments::from_iter(["conformance", "--quiet", filter])
    }

    fn succeeds(code: ExitCode) -> bool {
        // ExitCode has no comparison.
        format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS)
    }

    #[test]
    fn names_are_unique() {
        let names: Vec<String> = cases::<Host>().into_iter().map(|case| case.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(names.len() > 100, "{}", names.len());
    }

    #[test]
    fn an_absent_device_skips_and_is_a_failure_where_it_is_required() {
        let absent = || {
            Err::<Host, _>(HostError::Threads {
                threads: 1,
                reason: "no device".to_owned(),
            })
        };
        assert_eq!(
            absent().unwrap_err().kind(),
            BackendErrorKind::DeviceUnavailable
        );
        assert!(succeeds(
            Suite::new()
                .with("absent", absent)
                .run_with(&arguments(""), false)
        ));
        assert!(!succeeds(
            Suite::new()
                .with("absent", absent)
                .run_with(&arguments(""), true)
        ));
    }

    #[test]
    fn any_other_error_of_the_constructor_is_a_failure() {
        let broken = || Err::<Host, _>(HostError::OutOfMemory { bytes: 1 });
        assert!(!succeeds(
            Suite::new()
                .with("broken", broken)
                .run_with(&arguments(""), false)
        ));
    }

    #[test]
    fn a_run_of_nothing_but_skipped_cases_shows_nothing() {
        let conclusion = |passed, ignored, filtered_out| {
            let mut conclusion = libtest_mimic::run(&arguments(""), Vec::new());
            conclusion.num_passed = passed;
            conclusion.num_ignored = ignored;
            conclusion.num_filtered_out = filtered_out;
            conclusion
        };
        assert!(shows_nothing(&conclusion(0, 5, 0)));
        assert!(!shows_nothing(&conclusion(1, 5, 0)));
        assert!(!shows_nothing(&conclusion(0, 1, 4)));
    }
}

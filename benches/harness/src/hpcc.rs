//! HPL, the Linpack benchmark, as the proxy of an application: it computes most of the time. Debian has it in hpcc, the
//! HPC Challenge, which runs its other benchmarks too; those of the network are measured as well.

use crate::contender::Setup;
use crate::metric::{Label, Metric, Values, median};
use crate::mpi::Job;
use crate::workload::Workload;
use std::path::Path;
use std::time::Duration;
use uvn_rig::error::{RigError, written};

/// Four nodes with a rank each, as a grid of two by two.
pub const JOB: Job = Job { nodes: 4, ranks: 1 };
const GROUP: &str = "application";
const PROGRAM: &str = "hpcc";
const INPUT: &str = "hpccinf.txt";
const OUTPUT: &str = "hpccoutf.txt";
/// How often HPL solves its system: once takes a fraction of a second.
const TIMES: usize = 5;
/// Equations. The other benchmarks of hpcc take their size from that, and more of them takes seconds more.
const EQUATIONS: usize = 1440;

/// HPL, PTRANS and the rest.
#[derive(Debug, Clone, Copy)]
pub struct Hpcc;

impl Workload for Hpcc {
    fn name(&self) -> String {
        format!("HPCC, {}", JOB.name())
    }

    fn group(&self) -> &'static str {
        GROUP
    }

    fn takes(&self, _seconds: f64) -> f64 {
        7.0
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        let (input, output) = (setup.rig.directory().join(INPUT), setup.rig.directory().join(OUTPUT));
        std::fs::write(&input, parameters()).map_err(written(&input))?;
        // hpcc appends.
        let _first_time = std::fs::remove_file(&output);
        JOB.run(setup, &[PROGRAM], Duration::from_secs_f64(4.0 * self.takes(seconds)))?;
        values(&read(&output)?)
    }
}

fn read(output: &Path) -> Result<String, RigError> {
    std::fs::read_to_string(output).map_err(RigError::io(format!("read {}", output.display())))
}

/// HPL's parameter file, and two lines of PTRANS. hpcc reads it by position: a line is a value and then anything.
fn parameters() -> String {
    let sizes = vec![EQUATIONS.to_string(); TIMES].join(" ");
    format!(
        "HPL\nHPL\nHPL.out file\n8 to the file\n{TIMES} number of sizes\n{sizes} equations\n\
         1 number of block sizes\n80 block size\n0 row-major process mapping\n\
         1 number of process grids\n2 rows\n2 columns\n16.0 threshold of the residual\n\
         1 number of panel factorisations\n2 right-looking\n1 number of stopping criteria\n4 columns\n\
         1 number of panels in recursion\n2 panels\n1 number of recursive factorisations\n1 Crout\n\
         1 number of broadcasts\n1 increasing ring, modified\n1 number of look-ahead depths\n1 depth\n\
         2 mixed swapping\n64 swapping threshold\n0 L1 transposed\n0 U transposed\n1 equilibration\n8 alignment\n\
         nothing\n0 further sizes for PTRANS\n1200\n0 further block sizes for PTRANS\n40\n"
    )
}

/// HPL's rate: the median of its repetitions, lines as `WR11C2R4  1440  80  2  2  0.15  1.369e+01`. And the ring over
/// all ranks in random order, of the summary's lines as `RandomlyOrderedRingLatency_usec=6.05`.
fn values(output: &str) -> Result<Vec<(Label, Values)>, RigError> {
    let rates = output.lines().filter(|line| line.starts_with("WR")).filter_map(last_number).collect();
    let summary = |name: &str| {
        output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')?.parse::<f64>().ok())
    };
    let found = (
        summary("Success").filter(|&success| success > 0.0),
        median(rates),
        summary("RandomlyOrderedRingLatency_usec"),
        summary("RandomlyOrderedRingBandwidth_GBytes"),
    );
    let (Some(_), Some(rate), Some(latency), Some(bandwidth)) = found else {
        let why = "has no Success=1, no rate of HPL or no random ring";
        return Err(RigError::program(OUTPUT, format!("{why}:\n{}", tail(output))));
    };
    let label = |name: &str| Label { group: GROUP, name: format!("{name}, {}", JOB.name()), x: None };
    Ok(vec![
        (label("HPL"), vec![(Metric::GFLOPS, rate)]),
        (label("HPCC random ring"), vec![(Metric::US, latency), (Metric::MBYTES, 1e3 * bandwidth)]),
    ])
}

fn last_number(line: &str) -> Option<f64> {
    line.split_whitespace().last()?.parse().ok()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
WR11C2R4        1440    80     2     2               0.15              1.3e+01
WR11C2R4        1440    80     2     2               0.25              8.0e+00
WR11C2R4        1440    80     2     2               0.15              1.4e+01
Begin of Summary section.
Success=1
RandomlyOrderedRingLatency_usec=6.5
RandomlyOrderedRingBandwidth_GBytes=0.44
";

    #[test]
    fn the_median_solution_counts() {
        let parts = values(OUTPUT).unwrap();
        assert_eq!(parts[0].1, [(Metric::GFLOPS, 13.0)]);
        assert_eq!(parts[1].1, [(Metric::US, 6.5), (Metric::MBYTES, 440.0)]);
    }

    #[test]
    fn an_unfinished_run_is_an_error() {
        assert!(values(&OUTPUT.replace("Success=1", "Success=0")).is_err());
        assert!(values(OUTPUT.split_once("Begin").unwrap().0).is_err());
    }

    #[test]
    fn hpl_reads_31_lines_and_hpcc_5_more() {
        assert_eq!(parameters().lines().count(), 36);
    }
}

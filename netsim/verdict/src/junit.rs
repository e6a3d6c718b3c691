//! JUnit XML of a batch, the form that CI systems read: a suite for each scenario, a case for each run.
//!
//! UNKNOWN and INVALID are failures too, with the verdict as their type: a CI system knows no third colour that nobody
//! overlooks. The form is that of the XSD that Jenkins uses, without what only Java has.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::batch::BatchRun;
use crate::verdict::Verdict;

/// The whole document. Times are those of the runs' own clocks.
pub fn junit(runs: &[BatchRun]) -> String {
    let mut suites: BTreeMap<&str, Vec<&BatchRun>> = BTreeMap::new();
    for run in runs {
        suites.entry(&run.scenario).or_default().push(run);
    }
    let failed = |runs: &[&BatchRun]| runs.iter().filter(|r| r.verdict != Verdict::Pass).count();
    let all: Vec<&BatchRun> = runs.iter().collect();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        xml,
        "<testsuites name=\"netsim\" tests=\"{}\" failures=\"{}\" errors=\"0\" time=\"{}\">",
        all.len(),
        failed(&all),
        seconds(&all)
    );
    for (scenario, runs) in suites {
        let _ = writeln!(
            xml,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"0\" time=\"{}\">",
            escape(scenario),
            runs.len(),
            failed(&runs),
            seconds(&runs)
        );
        for run in runs {
            case(&mut xml, run);
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

fn case(xml: &mut String, run: &BatchRun) {
    let (name, class) = (escape(&run.name()), escape(&format!("netsim.{}", run.scenario)));
    let _ = writeln!(xml, "    <testcase name=\"{name}\" classname=\"{class}\" time=\"{}\">", seconds(&[run]));
    if run.verdict != Verdict::Pass {
        let first = run.findings.first().map_or("no finding", |f| &f.text);
        let _ = writeln!(xml, "      <failure type=\"{}\" message=\"{}\">", run.verdict, escape(first));
        for finding in &run.findings {
            let at = crate::findings::time(finding.at_ns);
            let text = format!("{} {} at {at}: {}", finding.verdict, finding.check, finding.text);
            let _ = writeln!(xml, "{}", escape(&text));
        }
        let _ = writeln!(xml, "replay: {}", escape(&run.replay));
        xml.push_str("      </failure>\n");
    }
    let _ = writeln!(xml, "      <system-out>{}</system-out>", escape(&run.figures.line));
    xml.push_str("    </testcase>\n");
}

fn seconds(runs: &[&BatchRun]) -> String {
    let ms: u64 = runs.iter().map(|r| r.figures.duration_ns / 1_000_000).sum();
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// For text and attributes. What XML 1.0 can't hold becomes U+FFFD.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push_str("&#9;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Finding;

    fn run(seed: u64, verdict: Verdict) -> BatchRun {
        let finding = Finding { check: "order".into(), verdict, at_ns: 1_500_000_000, text: "<a> & \"b\"\x01".into() };
        let mut run = BatchRun { scenario: "tunnel".into(), seed, verdict, ..BatchRun::default() };
        run.driver = "sim".into();
        run.figures.duration_ns = 2_500_000_000;
        run.figures.line = "1 sent".into();
        run.replay = "again".into();
        if verdict != Verdict::Pass {
            run.findings.push(finding);
        }
        run
    }

    #[test]
    fn the_document_is_as_ci_systems_read_it() {
        let golden = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="netsim" tests="2" failures="1" errors="0" time="5.000">
  <testsuite name="tunnel" tests="2" failures="1" errors="0" skipped="0" time="5.000">
    <testcase name="seed 1" classname="netsim.tunnel" time="2.500">
      <system-out>1 sent</system-out>
    </testcase>
    <testcase name="seed 2" classname="netsim.tunnel" time="2.500">
      <failure type="UNKNOWN" message="&lt;a&gt; &amp; &quot;b&quot;�">
UNKNOWN order at 1.500 s: &lt;a&gt; &amp; &quot;b&quot;�
replay: again
      </failure>
      <system-out>1 sent</system-out>
    </testcase>
  </testsuite>
</testsuites>
"#;
        assert_eq!(junit(&[run(1, Verdict::Pass), run(2, Verdict::Unknown)]), golden);
    }

    #[test]
    fn whatever_does_not_pass_is_a_failure() {
        for verdict in [Verdict::Unknown, Verdict::Invalid, Verdict::Fail] {
            let xml = junit(&[run(1, verdict)]);
            assert!(xml.contains(" failures=\"1\"") && xml.contains(&format!("type=\"{verdict}\"")), "{xml}");
        }
    }
}

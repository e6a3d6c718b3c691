//! Whether the run shows anything. A fault that appeared to be there and hit no packet is the classic way to test
//! nothing for years, so what does not happen is not forgiven: the run is UNKNOWN.

use crate::facts::Facts;
use crate::findings::Findings;
use crate::verdict::Verdict;

pub(crate) fn check(facts: &Facts<'_>, findings: &mut Findings) {
    let mut unknown = |text: String| findings.add("coverage", Verdict::Unknown, facts.last_ns, || text);
    if facts.messages.values().all(|m| m.refused_ns.is_some()) {
        unknown("nothing was sent".into());
    } else if !facts.shown.iter().any(|s| s.new) {
        unknown("nothing was shown".into());
    }
    for (id, kind, target) in &facts.run.cast.faults {
        if facts.run.expect.unhit.contains(id) {
            continue;
        }
        let mut spans = facts.spans.iter().filter(|s| s.fault == id).peekable();
        if spans.peek().is_none() {
            unknown(format!("fault {id} ({kind} of {target}) never began"));
        } else if spans.all(|s| s.hits == 0) {
            unknown(format!("fault {id} ({kind} of {target}) hit nothing"));
        }
    }
    for (name, wanted) in &facts.run.sometimes {
        let reached = facts.sometimes.get(name.as_str()).copied().unwrap_or(0);
        if reached < *wanted {
            unknown(format!(
                "{name} happened {reached} times, and must happen {wanted} times for the run to show anything"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::examples::Example;
    use crate::history::Event;
    use crate::verdict::Verdict;

    #[test]
    fn a_run_in_which_nothing_is_sent_or_shown_shows_nothing() {
        assert_eq!(Example::new().phase("load").ends_well().found(), ["coverage"]);
        let example = Example::good().ends_well().remove(|e| matches!(e, Event::Shown { .. }));
        assert_eq!((example.found(), example.judge().verdict), (vec!["coverage".into()], Verdict::Unknown));
    }

    #[test]
    fn a_fault_must_hit_something() {
        let hits = |n| Example::good().begin("dark", "outage", "bob-phone").finish("dark", n);
        assert_eq!(hits(1).ends_well().found(), [""; 0]);
        assert_eq!(hits(0).ends_well().found(), ["coverage"]);
        assert_eq!(hits(0).expect(|e| e.unhit = vec!["dark".into()]).ends_well().found(), [""; 0]);
        // Once is enough.
        let twice = hits(0).begin("dark", "outage", "bob-phone").finish("dark", 2);
        assert_eq!(twice.ends_well().found(), [""; 0]);
    }

    #[test]
    fn a_planned_fault_must_begin() {
        assert_eq!(Example::good().planned("dark").ends_well().found(), ["coverage"]);
    }

    #[test]
    fn what_must_happen_sometimes_must_happen() {
        let happened = |count| {
            let example = Example::good().sometimes("path_migrated", 3);
            example.event(Event::Sometimes { name: "path_migrated".into(), count }).ends_well().found()
        };
        assert_eq!((happened(3), happened(2)), (vec![], vec!["coverage".to_owned()]));
    }
}

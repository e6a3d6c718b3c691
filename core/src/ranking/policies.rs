//! What operators want of the choice: weights of regions, people pinned to regions, and shares of regions in percent.
//!
//! Problem: the nearest edge with room is not always where a client should be. A law, a contract or a half-built region
//! wants certain people in certain places, and a move of traffic from one region to another is done in steps.
//!
//! Rule: at most one rule holds for a client: that which names its user, else that of its country or continent, else that
//! for everyone. A rule *pins*: only edges of its regions are listed, unless none of them can be listed at all, for a
//! connection in the wrong place is better than none; or it *shares*: the client's region is drawn by percent among those
//! that are alive, and its other ranks are as ever. The draw is by a hash of who it is, so that whoever asks again gets the
//! same, every dispatcher draws the same, and when a share changes by a tenth, about a tenth of the clients move
//! (weighted rendezvous: each region runs a race with its percent as its speed, and the first one wins). Weights multiply
//! the room of edges, among those that are equally near; a region of weight 0 is listed where nothing else is.
//!
//! Rules that could both hold are an error when they are read, not a matter of their order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::position::Country;
use crate::ids::Region;

/// Rules of a deployment.
pub const RULES_MAX: usize = 256;
/// Users and beginnings of users in all rules.
pub const USERS_MAX: usize = 200_000;
/// A weight at most.
pub const WEIGHT_MAX: f64 = 1_000.0;
/// Shares add up to 100 within this.
const PERCENT_SLACK: f64 = 0.01;

/// A rule as an operator writes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleDraft {
    /// For explanations; empty: its number.
    pub name: String,
    /// User ids; those that end in `*` are beginnings.
    pub users: Vec<String>,
    /// Countries, two letters.
    pub countries: Vec<String>,
    /// Continents, two letters.
    pub continents: Vec<String>,
    /// Everyone whom no other rule names.
    pub everyone: bool,
    /// Regions to pin to.
    pub pin: Vec<String>,
    /// Percent of clients, by region.
    pub shares: BTreeMap<String, f64>,
}

/// All of an operator's policies as they are written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoliciesDraft {
    /// Numbers of the regions that the rest names.
    pub regions: BTreeMap<String, Region>,
    /// Weights; 1 where there is none.
    pub weights: BTreeMap<String, f64>,
    /// The rules.
    pub rules: Vec<RuleDraft>,
}

#[derive(Clone, Debug, PartialEq)]
enum To {
    Pinned(Vec<Region>),
    Shares(Vec<(Region, f64)>),
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    name: Arc<str>,
    to: To,
}

/// Policies that make sense.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    names: BTreeMap<Region, Arc<str>>,
    weights: BTreeMap<Region, f64>,
    rules: Vec<Rule>,
    users: BTreeMap<String, usize>,
    beginnings: BTreeMap<String, usize>,
    countries: BTreeMap<Country, usize>,
    continents: BTreeMap<[u8; 2], usize>,
    everyone: Option<usize>,
}

/// Who is to be placed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Who<'a> {
    /// Its user, as it says.
    pub user: Option<&'a str>,
    /// Its country, if known.
    pub country: Option<Country>,
    /// What tells it from others where no user is known: its address, say.
    pub key: &'a [u8],
}

/// What policies make of a client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placed<'a> {
    policies: Option<&'a Policies>,
    outcome: Outcome<'a>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Outcome<'a> {
    /// No rule names it.
    #[default]
    Free,
    /// To these, some of which are alive.
    Pinned(&'a Rule, &'a [Region], Named),
    /// To these, none of which is.
    PinnedDead(&'a Rule, &'a [Region], Named),
    /// To this one, with its percent.
    Shared(&'a Rule, Region, f64, Named),
    /// None that has a share is alive.
    SharesDead(&'a Rule, Named),
}

/// By what a rule names a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    User,
    Country,
    Continent,
    Everyone,
}

impl Placed<'_> {
    /// Whether edges of a region may be listed.
    pub fn allows(&self, region: Region) -> bool {
        match self.outcome {
            Outcome::Pinned(_, regions, _) => regions.contains(&region),
            _ => true,
        }
    }

    /// The region that comes first, if a share says so.
    pub fn first(&self) -> Option<Region> {
        match self.outcome {
            Outcome::Shared(_, region, ..) => Some(region),
            _ => None,
        }
    }

    /// By what the room of a region's edges is multiplied.
    pub fn weight(&self, region: Region) -> f64 {
        self.policies.and_then(|policies| policies.weights.get(&region)).copied().unwrap_or(1.0)
    }

    /// What an operator is told of an edge's region; empty where no policy concerns it.
    pub fn explain(&self, region: Region) -> String {
        let name = |region: Region| self.policies.map_or_else(|| region.to_string(), |policies| policies.name(region));
        let names = |regions: &[Region]| regions.iter().map(|r| name(*r)).collect::<Vec<_>>().join(", ");
        let mut said = match self.outcome {
            Outcome::Free => String::new(),
            Outcome::Pinned(rule, regions, by) => format!("pinned to {} by {} ({by})", names(regions), rule.name),
            Outcome::PinnedDead(rule, regions, by) => format!(
                "pinned to {} by {} ({by}), where no edge can be listed: placed as if it were not",
                names(regions),
                rule.name
            ),
            Outcome::Shared(rule, first, percent, by) if first == region => {
                format!("{} has {percent} % by {} ({by})", name(first), rule.name)
            }
            Outcome::Shared(rule, first, _, by) => {
                format!("after {}, whose share it is by {} ({by})", name(first), rule.name)
            }
            Outcome::SharesDead(rule, by) => {
                format!(
                    "no region with a share by {} ({by}) has an edge to list: placed as if there were none",
                    rule.name
                )
            }
        };
        let weight = self.weight(region);
        if (weight - 1.0).abs() > f64::EPSILON {
            let more = format!("{}weight {weight}", if said.is_empty() { "" } else { "; " });
            said.push_str(&more);
        }
        said
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Named::User => "user",
            Named::Country => "country",
            Named::Continent => "continent",
            Named::Everyone => "everyone",
        })
    }
}

impl Policies {
    /// Checks a draft; `known`: regions that this dispatcher may hear of. Every problem is told.
    pub fn new(draft: &PoliciesDraft, known: &BTreeSet<Region>) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut policies = Self::default();
        for (name, region) in &draft.regions {
            if !known.contains(region) {
                let known: Vec<String> = known.iter().map(ToString::to_string).collect();
                problems.push(format!(
                    "regions: {name} = {region}: this dispatcher knows of no region {region}, but of {}",
                    known.join(", ")
                ));
            }
            if let Some(other) = policies.names.insert(*region, name.as_str().into()) {
                problems.push(format!("regions: {other} and {name} have one number, {region}"));
            }
        }
        let find = |at: &str, name: &str, problems: &mut Vec<String>| {
            let found = draft.regions.get(name).copied();
            if found.is_none() {
                let known: Vec<&str> = draft.regions.keys().map(String::as_str).collect();
                problems.push(format!("{at}: there is no region {name:?}; `regions` has {}", known.join(", ")));
            }
            found
        };
        for (name, weight) in &draft.weights {
            if !(0.0..=WEIGHT_MAX).contains(weight) {
                problems.push(format!("weights: {name} = {weight}: a weight is from 0 to {WEIGHT_MAX}"));
            }
            if let Some(region) = find("weights", name, &mut problems) {
                policies.weights.insert(region, *weight);
            }
        }
        if draft.rules.len() > RULES_MAX {
            problems.push(format!("there are {} rules; at most {RULES_MAX} are taken", draft.rules.len()));
        }
        for (at, rule) in draft.rules.iter().enumerate().take(RULES_MAX) {
            let name = if rule.name.is_empty() { format!("rule {}", at + 1) } else { format!("rule {:?}", rule.name) };
            let to = to(&name, rule, &mut problems, find);
            policies.rules.push(Rule { name: name.as_str().into(), to });
            policies.take_whom(at, &name, rule, &mut problems);
        }
        policies.find_overlaps(&mut problems);
        if problems.is_empty() { Ok(policies) } else { Err(problems) }
    }

    fn take_whom(&mut self, at: usize, name: &str, rule: &RuleDraft, problems: &mut Vec<String>) {
        let by_user = !rule.users.is_empty();
        let by_area = !rule.countries.is_empty() || !rule.continents.is_empty();
        if [by_user, by_area, rule.everyone].iter().filter(|by| **by).count() != 1 {
            problems.push(format!(
                "{name}: it must name users, or countries and continents, or everyone, and only one of these"
            ));
        }
        let other = |of: Option<usize>, what: &str, problems: &mut Vec<String>, rules: &[Rule]| {
            if let Some(of) = of.filter(|of| *of != at) {
                problems.push(format!("{what} is named by {} and by {name}: only one rule may hold", rules[of].name));
            }
        };
        for user in &rule.users {
            if self.users.len() + self.beginnings.len() >= USERS_MAX {
                problems.push(format!("{name}: more than {USERS_MAX} users are named by all rules"));
                break;
            }
            let (text, all) = match user.strip_suffix('*') {
                Some(beginning) => (beginning, &mut self.beginnings),
                None => (user.as_str(), &mut self.users),
            };
            if text.is_empty() || text.len() > 64 || text.contains('*') {
                problems.push(format!("{name}: user {user:?}: an id, or the beginning of one and a * at its end"));
                continue;
            }
            other(all.insert(text.to_owned(), at), &format!("user {user}"), problems, &self.rules);
        }
        for code in &rule.countries {
            match Country::new(code).filter(|country| continent_of(*country).is_some()) {
                Some(country) => {
                    other(self.countries.insert(country, at), &format!("country {country}"), problems, &self.rules);
                }
                None => problems.push(format!("{name}: {code:?} is no country; they have two letters, such as DE")),
            }
        }
        for code in &rule.continents {
            match CONTINENTS.iter().find(|(name, _)| *name == code.to_uppercase()) {
                Some((name, _)) => {
                    let key = [name.as_bytes()[0], name.as_bytes()[1]];
                    other(self.continents.insert(key, at), &format!("continent {name}"), problems, &self.rules);
                }
                None => problems.push(format!(
                    "{name}: {code:?} is no continent; there are AF, AN, AS, EU, NA (North America), OC and SA"
                )),
            }
        }
        if rule.everyone {
            other(self.everyone.replace(at), "everyone", problems, &self.rules);
        }
    }

    /// Rules of which two could hold, though they name nothing alike.
    fn find_overlaps(&self, problems: &mut Vec<String>) {
        let rule = |at: usize| &self.rules[at].name;
        let both = [&self.users, &self.beginnings];
        for (which, all) in both.into_iter().enumerate() {
            for (text, at) in all {
                let shorter = beginnings_of(text).filter(|beginning| which == 0 || beginning.len() < text.len());
                for beginning in shorter {
                    if let Some(of) = self.beginnings.get(beginning).filter(|of| *of != at) {
                        let star = if which == 0 { "" } else { "*" };
                        problems.push(format!(
                            "user {text}{star} of {} is one of {beginning}* of {}: only one rule may hold",
                            rule(*at),
                            rule(*of)
                        ));
                    }
                }
            }
        }
        for (country, at) in &self.countries {
            let Some(continent) = continent_of(*country) else { continue };
            if let Some(of) = self.continents.get(&continent).filter(|of| *of != at) {
                problems.push(format!(
                    "country {country} of {} lies in continent {} of {}: only one rule may hold",
                    rule(*at),
                    String::from_utf8_lossy(&continent),
                    rule(*of)
                ));
            }
        }
    }

    /// Whether they say nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.weights.is_empty()
    }

    fn name(&self, region: Region) -> String {
        self.names.get(&region).map_or_else(|| region.to_string(), ToString::to_string)
    }

    /// What becomes of a client; `alive`: whether some edge of a region can be listed.
    pub fn place<'a>(&'a self, who: &Who<'_>, alive: impl Fn(Region) -> bool) -> Placed<'a> {
        let outcome = match self.rule_for(who) {
            None => Outcome::Free,
            Some((rule, by)) => match &rule.to {
                To::Pinned(regions) if regions.iter().any(|r| alive(*r)) => Outcome::Pinned(rule, regions, by),
                To::Pinned(regions) => Outcome::PinnedDead(rule, regions, by),
                To::Shares(shares) => {
                    let key = who.user.map_or(who.key, str::as_bytes);
                    let running = shares.iter().filter(|(region, _)| alive(*region));
                    let times = running.map(|(region, percent)| (race(key, *region) / percent, *region, *percent));
                    match times.min_by(|a, b| a.0.total_cmp(&b.0)) {
                        Some((_, region, percent)) => Outcome::Shared(rule, region, percent, by),
                        None => Outcome::SharesDead(rule, by),
                    }
                }
            },
        };
        Placed { policies: Some(self), outcome }
    }

    fn rule_for(&self, who: &Who<'_>) -> Option<(&Rule, Named)> {
        let by_user = who.user.and_then(|user| {
            let beginning = || beginnings_of(user).find_map(|beginning| self.beginnings.get(beginning));
            self.users.get(user).or_else(beginning)
        });
        let by_country = || Some((*self.countries.get(&who.country?)?, Named::Country));
        let by_continent = || Some((*self.continents.get(&continent_of(who.country?)?)?, Named::Continent));
        let everyone = || Some((self.everyone?, Named::Everyone));
        let by_user = by_user.map(|at| (*at, Named::User));
        let (at, by) = by_user.or_else(by_country).or_else(by_continent).or_else(everyone)?;
        Some((self.rules.get(at)?, by))
    }
}

/// All that a text begins with, the shortest first, itself last.
fn beginnings_of(text: &str) -> impl Iterator<Item = &str> {
    (1..=text.len()).filter_map(|end| text.get(..end))
}

fn to(
    name: &str,
    rule: &RuleDraft,
    problems: &mut Vec<String>,
    find: impl Fn(&str, &str, &mut Vec<String>) -> Option<Region>,
) -> To {
    if rule.pin.is_empty() == rule.shares.is_empty() {
        problems.push(format!("{name}: it must have either `pin` with regions or `shares` of regions"));
    }
    if !rule.pin.is_empty() {
        let mut regions = Vec::new();
        for region in &rule.pin {
            match find(name, region, problems) {
                Some(found) if regions.contains(&found) => problems.push(format!("{name}: pins to {region} twice")),
                Some(found) => regions.push(found),
                None => {}
            }
        }
        return To::Pinned(regions);
    }
    let mut shares = Vec::new();
    for (region, percent) in &rule.shares {
        if !(0.0..=100.0).contains(percent) {
            problems.push(format!("{name}: {region} has {percent} %; a share is from 0 to 100"));
        }
        if let Some(found) = find(name, region, problems)
            && *percent > 0.0
        {
            shares.push((found, *percent));
        }
    }
    let sum: f64 = rule.shares.values().sum();
    if !rule.shares.is_empty() && (sum - 100.0).abs() > PERCENT_SLACK {
        problems.push(format!("{name}: its shares add up to {sum} %, and must to 100"));
    }
    To::Shares(shares)
}

/// When a region would be there if all were equally fast: exponentially distributed, by a hash.
fn race(key: &[u8], region: Region) -> f64 {
    // FNV-1a, and the finalizer of SplitMix64 for its weak high bits.
    let hash = [region]
        .iter()
        .chain(key)
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let mut z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    // In (0, 1].
    let uniform = ((z >> 11) as f64 + 1.0) / 9_007_199_254_740_992.0;
    -uniform.ln()
}

/// Countries by continent, as geographers have them; those on two lie where most of their people live.
const CONTINENTS: [(&str, &str); 7] = [
    (
        "AF",
        "AO BF BI BJ BW CD CF CG CI CM CV DJ DZ EG EH ER ET GA GH GM GN GQ GW IO KE KM LR LS LY MA MG ML MR MU MW MZ NA \
         NE NG RE RW SC SD SH SL SN SO SS ST SZ TD TG TN TZ UG YT ZA ZM ZW",
    ),
    ("AN", "AQ BV GS HM TF"),
    (
        "AS",
        "AE AF AM AZ BD BH BN BT CC CN CX GE HK ID IL IN IQ IR JO JP KG KH KP KR KW KZ LA LB LK MM MN MO MV MY NP OM PH \
         PK PS QA SA SG SY TH TJ TL TM TR TW UZ VN YE",
    ),
    (
        "EU",
        "AD AL AT AX BA BE BG BY CH CY CZ DE DK EE ES FI FO FR GB GG GI GR HR HU IE IM IS IT JE LI LT LU LV MC MD ME MK \
         MT NL NO PL PT RO RS RU SE SI SJ SK SM UA VA XK",
    ),
    (
        "NA",
        "AG AI AW BB BL BM BQ BS BZ CA CR CU CW DM DO GD GL GP GT HN HT JM KN KY LC MF MQ MS MX NI PA PM PR SV SX TC TT \
         US VC VG VI",
    ),
    ("OC", "AS AU CK FJ FM GU KI MH MP NC NF NR NU NZ PF PG PN PW SB TK TO TV UM VU WF WS"),
    ("SA", "AR BO BR CL CO EC FK GF GY PE PY SR UY VE"),
];

/// Two letters.
fn continent_of(country: Country) -> Option<[u8; 2]> {
    let code = country.as_bytes();
    let within = |all: &str| all.as_bytes().chunks(3).any(|one| one.starts_with(code));
    let name = CONTINENTS.iter().find(|(_, all)| within(all))?.0.as_bytes();
    Some([name[0], name[1]])
}

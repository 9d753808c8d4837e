//! Claims about the ratio of two rows. The run itself may show that one holds; where it does not, both rows run again in
//! turns, as a suspected regression does, until the claim is decided.

use std::time::Duration;

use anyhow::Result;

use super::{
    detector::{Pair, Rules, Verdict, confirm},
    progress::Progress,
    published::Claim,
    result::CheckedClaim,
    session::{Measured, Patience, Samples, Session},
    statistics::{median, paired_ratio},
};

/// Of those claims whose rows were measured.
pub(crate) fn check(
    session: &mut Session,
    measured: &Measured,
    claims: Vec<Claim>,
    patience: Duration,
) -> Result<Vec<CheckedClaim>> {
    let mut checked = screened(&measured.new, claims);
    let suspects = checked.iter().filter(|(_, is_open)| *is_open).count();
    if suspects > 0 {
        let most = Rules::default().looks.last().copied().unwrap_or(0);
        let progress = Progress::new("claims", suspects * most);
        progress.say(&format!("{suspects} of {} claims are not shown to hold and run again", checked.len()));
        let mut patience = Patience::new(patience);
        for (claim, _) in checked.iter_mut().filter(|(_, is_open)| *is_open) {
            let Claim { row, over, .. } = claim.claim.clone();
            let mut rules = rules(&claim.claim);
            rules.alarms /= suspects as f64;
            let confirmed = confirm(&[format!("{row} over {over}")], &rules, |name| {
                progress.step(name);
                patience.spend(name, || session.pair_of(&row, &over))
            })?;
            for confirmed in confirmed {
                (claim.pairs, claim.verdict) = (confirmed.pairs.len(), confirmed.verdict);
                if claim.pairs > 0 {
                    claim.ratio = paired_ratio(&confirmed.pairs, &confirmed.row);
                }
            }
        }
    }
    Ok(checked.into_iter().map(|(claim, _)| claim).collect())
}

/// A claim is what a regression is measured by: the one row must not be slower than so much of the other.
fn rules(claim: &Claim) -> Rules {
    Rules { tolerance: claim.at_most - 1.0, ..Rules::default() }
}

/// What the run's own processes say, each of which ran both rows; and whether that leaves the claim open.
fn screened(samples: &Samples, claims: Vec<Claim>) -> Vec<(CheckedClaim, bool)> {
    let measured = |claim: Claim| {
        let (row, over) = (samples.get(&claim.row)?, samples.get(&claim.over)?);
        let pairs: Vec<Pair> = row.iter().zip(over).map(|(row, over)| (median(row), median(over))).collect();
        let is_open = rules(&claim).is_suspect(&pairs);
        let ratio = paired_ratio(&pairs, &claim.row);
        Some((CheckedClaim { claim, ratio, pairs: 0, verdict: Verdict::Clear }, is_open))
    };
    claims.into_iter().filter_map(measured).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(row: &str, at_most: f64) -> Claim {
        Claim { row: row.into(), over: "group/over".into(), at_most, text: String::new() }
    }

    #[test]
    fn only_what_the_run_does_not_show_stays_open() {
        let of = |times: [f64; 4]| times.map(|time| vec![time]).to_vec();
        let samples = Samples::from([
            ("group/over".to_owned(), of([100., 110., 90., 100.])),
            ("group/same".to_owned(), of([101., 110., 91., 100.])),
            ("group/noisy".to_owned(), of([100., 160., 80., 130.])),
            ("group/slow".to_owned(), of([120., 132., 108., 121.])),
            ("group/half".to_owned(), of([50., 54., 45., 49.])),
        ]);
        let claims = [("same", 1.05), ("noisy", 1.05), ("slow", 1.05), ("half", 0.6), ("half", 0.4)]
            .map(|(row, at_most)| claim(&format!("group/{row}"), at_most));
        let checked = screened(&samples, claims.into_iter().chain([claim("group/unknown", 1.)]).collect());
        let is_open: Vec<bool> = checked.iter().map(|(_, is_open)| *is_open).collect();
        assert_eq!(is_open, [false, true, true, false, true]);
        assert!((checked[3].0.ratio.estimate - 0.5).abs() < 0.02, "{:?}", checked[3].0.ratio);
    }
}

//! Numbers of a run made fit to be looked at: smoothed, and no more of them than can be seen.

/// Means over up to `reach` neighbours on either side. At the start fewer on the right, so that a steep fall is not drawn flat;
/// at the end what there is. Numbers that are not finite count for nothing and stay as they are.
pub fn smooth(values: &[f64], reach: usize) -> Vec<f64> {
    let mut sums = Vec::with_capacity(values.len() + 1);
    let (mut sum, mut count) = (0.0, 0usize);
    sums.push((sum, count));
    for &value in values {
        if value.is_finite() {
            sum += value;
            count += 1;
        }
        sums.push((sum, count));
    }
    let mean = |index: usize, value: f64| {
        if !value.is_finite() {
            return value;
        }
        let right = reach.min(index.max(reach / 3));
        let (start, end) = (index.saturating_sub(reach), (index + right + 1).min(values.len()));
        (sums[end].0 - sums[start].0) / (sums[end].1 - sums[start].1) as f64
    };
    values.iter().enumerate().map(|(index, &value)| mean(index, value)).collect()
}

/// The means of `count` equal parts, or all values if there are fewer; a part without a finite number is NaN.
pub fn bucket_means(values: &[f64], count: usize) -> Vec<f64> {
    let count = count.min(values.len());
    let part = |index: usize| &values[index * values.len() / count..(index + 1) * values.len() / count];
    (0..count).map(|index| mean(part(index))).collect()
}

/// Points that draw the same line as all of them do where one of `columns` columns is the least that can be seen: of each the
/// lowest and the highest, in their order.
pub(super) fn decimate(points: &[(f64, f64)], columns: usize) -> Vec<(f64, f64)> {
    if points.len() <= 2 * columns {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * columns);
    for column in 0..columns {
        let part = &points[column * points.len() / columns..(column + 1) * points.len() / columns];
        let finite = || part.iter().enumerate().filter(|(_, point)| point.1.is_finite());
        let low = finite().min_by(|one, other| one.1.1.total_cmp(&other.1.1));
        let high = finite().max_by(|one, other| one.1.1.total_cmp(&other.1.1));
        match (low, high) {
            (Some((low, _)), Some((high, _))) => {
                kept.push(part[low.min(high)]);
                if low != high {
                    kept.push(part[low.max(high)]);
                }
            }
            // A gap.
            _ => kept.push(part[0]),
        }
    }
    kept
}

/// The values below which `shares` (ascending, 0 to 1) of the finite ones lie.
pub(super) fn quantiles<const N: usize>(values: &[f64], shares: [f64; N]) -> Option<[f64; N]> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some(shares.map(|share| sorted[(share * last as f64).round() as usize]))
}

fn mean(values: &[f64]) -> f64 {
    let finite = || values.iter().filter(|value| value.is_finite());
    finite().sum::<f64>() / finite().count() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_follows_the_start_and_passes_over_what_is_not_finite() {
        assert_eq!(smooth(&[9.0, 3.0, 3.0, 6.0], 1), [9.0, 5.0, 4.0, 4.5]);
        let smoothed = smooth(&[1.0, f64::NAN, 3.0, 5.0], 1);
        assert!(smoothed[1].is_nan());
        assert_eq!([smoothed[0], smoothed[2], smoothed[3]], [1.0, 4.0, 4.0]);
        assert!(smooth(&[], 3).is_empty());
    }

    #[test]
    fn means_of_parts() {
        assert_eq!(bucket_means(&[1.0, 3.0, 5.0, 7.0, 9.0], 2), [2.0, 7.0]);
        assert_eq!(bucket_means(&[1.0], 8), [1.0]);
        assert!(bucket_means(&[f64::NAN, 1.0], 2)[0].is_nan());
        assert!(bucket_means(&[], 8).is_empty());
    }

    #[test]
    fn decimation_keeps_every_peak_and_the_order() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|step| (f64::from(step), 1.0)).collect();
        points[77_777].1 = 9.0;
        points[77_778].1 = -9.0;
        let kept = decimate(&points, 300);
        assert!(kept.len() <= 600);
        assert!(kept.contains(&(77_777.0, 9.0)) && kept.contains(&(77_778.0, -9.0)));
        assert!(kept.is_sorted_by(|one, other| one.0 < other.0));
        assert_eq!(decimate(&points[..600], 300), points[..600]);
    }

    #[test]
    fn decimation_leaves_a_gap_where_nothing_is_finite() {
        let points: Vec<(f64, f64)> =
            (0..1000).map(|step| (f64::from(step), if step < 500 { f64::NAN } else { 1.0 })).collect();
        let kept = decimate(&points, 10);
        assert!(kept[..5].iter().all(|point| point.1.is_nan()));
        assert!(kept[5..].iter().all(|point| point.1 == 1.0));
    }

    #[test]
    fn quantiles_are_of_the_finite_values() {
        let values = [5.0, f64::NAN, 1.0, 3.0, f64::INFINITY];
        assert_eq!(quantiles(&values, [0.0, 0.5, 1.0]), Some([1.0, 3.0, 5.0]));
        assert_eq!(quantiles(&[f64::NAN], [0.5]), None);
    }
}

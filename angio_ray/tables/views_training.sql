-- What was trained and how well it does: over labels, folds, predictions and metrics (empty before the first training).

-- One line per set of labels.
CREATE VIEW label_sets AS
SELECT
    label_set, any_value(origin) AS origin, bool_or(synthetic) AS synthetic,
    count(*) AS num_clips,
    count(DISTINCT group_id) AS num_patients,
    count(*) FILTER (quality = 'satisfactory') AS num_satisfactory,
    count(*) FILTER (quality = 'unsatisfactory') AS num_unsatisfactory,
    count(*) FILTER (quality IS NULL) AS num_without_quality,
    max(added_at) AS added_at
FROM labels
GROUP BY label_set;

-- One line per part of a fold: how many clips and patients, and how many of the positive class.
CREATE VIEW fold_parts AS
SELECT
    fold_set, fold, part,
    count(*) AS num_clips,
    count(DISTINCT group_id) AS num_patients,
    count(*) FILTER (target) AS num_positive
FROM folds
GROUP BY fold_set, fold, part
ORDER BY fold_set, fold, part;

-- Must be empty: patients on two sides of a fold.
CREATE VIEW fold_leaks AS
SELECT fold_set, fold, group_id, list(DISTINCT part ORDER BY part) AS parts
FROM folds
WHERE part <> 'left_out'
GROUP BY fold_set, fold, group_id
HAVING count(DISTINCT part) > 1;

-- Every clip once per experiment and model, scored by the fold that had not seen its patient. A clip that several folds
-- left out (or a model of no fold scored) is not here.
CREATE VIEW out_of_fold AS
SELECT
    experiment, model, fold, clip_id, patient_id, group_id, study_id, task, target, probability, threshold,
    probability >= threshold AS positive, (probability >= threshold) = target AS correct, synthetic, model_domain
FROM predictions
WHERE part = 'test' AND fold IS NOT NULL AND NOT in_sample;

-- Counts at each model's own threshold, of rows that no training saw. One line per experiment, model, data, part and fold.
CREATE VIEW confusion AS
SELECT
    experiment, model, data, part, fold,
    count(*) FILTER (target AND probability >= threshold) AS true_positive,
    count(*) FILTER (target AND probability < threshold) AS false_negative,
    count(*) FILTER (NOT target AND probability < threshold) AS true_negative,
    count(*) FILTER (NOT target AND probability >= threshold) AS false_positive
FROM predictions
WHERE NOT in_sample AND target IS NOT NULL AND threshold IS NOT NULL
GROUP BY experiment, model, data, part, fold;

-- The paper's row: one line per experiment, model, data, scope and fold, over all clips.
CREATE VIEW metrics_wide AS
SELECT
    experiment, model, data, scope, fold,
    max(value) FILTER (metric = 'auc') AS auc,
    max(low) FILTER (metric = 'auc') AS auc_low,
    max(high) FILTER (metric = 'auc') AS auc_high,
    max(sd) FILTER (metric = 'auc') AS auc_sd,
    max(value) FILTER (metric = 'accuracy') AS accuracy,
    max(value) FILTER (metric = 'precision') AS "precision",
    max(value) FILTER (metric = 'sensitivity') AS sensitivity,
    max(value) FILTER (metric = 'specificity') AS specificity,
    max(value) FILTER (metric = 'npv') AS npv,
    max(value) FILTER (metric = 'f1') AS f1,
    max(value) FILTER (metric = 'positive_rate') AS positive_rate,
    max(value) FILTER (metric = 'prevalence') AS prevalence,
    max(value) FILTER (metric = 'average_precision') AS average_precision,
    max(value) FILTER (metric = 'brier') AS brier,
    any_value(num_clips) FILTER (metric = 'auc') AS num_clips,
    any_value(num_patients) FILTER (metric = 'auc') AS num_patients,
    any_value(num_positive) FILTER (metric = 'auc') AS num_positive,
    any_value(data_domain) AS data_domain,
    any_value(model_domain) AS model_domain
FROM metrics
WHERE subgroup IS NULL AND compared_with IS NULL AND cutoff IS NULL
GROUP BY experiment, model, data, scope, fold;

-- The newest score of each labelled clip beside its label.
CREATE VIEW labelled_scores AS
SELECT
    l.label_set, l.clip_id, l.patient_id, l.group_id, l.study_id, l.quality, l.quality_class, l.artery, l."view", s.status,
    s.reason, s.quality_run_id, s.quality_probability, s.quality_threshold, s.quality_satisfactory,
    s.quality_satisfactory = (l.quality = 'satisfactory') AS correct, l.synthetic, s.model_domain
FROM labels AS l
LEFT JOIN latest_scores AS s USING (clip_id);

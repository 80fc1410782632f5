-- The ready-made views over scores and runs. Rates and maxima are of clips; ids are pseudonyms.
-- A view here must work without the clips table (see views_clips.sql for what needs it).

-- One line per run: how far it is, what became of its objects, when and with which code.
CREATE VIEW run_summary AS
WITH events AS (
    SELECT
        run_id,
        last(event ORDER BY fence, "at") AS last_event,
        bool_or(event = 'finished') AS finished,
        min("at") FILTER (event = 'claimed') AS started_at,
        -- the first time: a later --retry of an old run does not make its scores the newest
        min("at") FILTER (event = 'finished') AS finished_at,
        count(*) FILTER (event = 'claimed') AS num_claims,
        last(manifest_objects ORDER BY fence, "at") FILTER (manifest_objects IS NOT NULL) AS num_listed,
        any_value(config_digest) AS config_digest,
        any_value(config_json) AS config_json,
        last(code_version ORDER BY fence, "at") AS code_version
    FROM runs
    GROUP BY run_id
),
objects AS (
    SELECT
        run_id,
        count(*) AS num_objects,
        count(*) FILTER (status = 'scored') AS num_scored,
        count(*) FILTER (status = 'gated') AS num_gated,
        count(*) FILTER (status = 'rejected') AS num_rejected,
        count(*) FILTER (NOT quality_satisfactory) AS num_unsatisfactory,
        count(*) FILTER (NOT quality_satisfactory) / nullif(count(quality_satisfactory), 0) AS exclusion_rate,
        bool_or(quality_status IS NOT NULL) AS any_quality,
        bool_or(artery_status IS NOT NULL) AS any_artery,
        bool_or(oblique_status IS NOT NULL) AS any_oblique,
        bool_or(contrast_status IS NOT NULL) AS any_contrast,
        bool_or(stenosis_status IS NOT NULL) AS any_stenosis,
        bool_or(calcium_status IS NOT NULL) AS any_calcium,
        max(model_domain) AS model_domain
    FROM scores
    GROUP BY run_id
)
SELECT
    run_id, last_event, finished, started_at, finished_at, num_claims, num_listed,
    coalesce(num_objects, 0) AS num_objects,
    coalesce(num_scored, 0) AS num_scored,
    coalesce(num_gated, 0) AS num_gated,
    coalesce(num_rejected, 0) AS num_rejected,
    coalesce(num_unsatisfactory, 0) AS num_unsatisfactory,
    exclusion_rate,
    -- what it was asked for: a run that rejects every clip was asked too
    coalesce(any_quality, false) OR coalesce(json_exists(config_json, '$.models.quality'), false) AS has_quality,
    coalesce(any_artery, false) OR coalesce(json_exists(config_json, '$.models.artery'), false) AS has_artery,
    coalesce(any_oblique, false) OR coalesce(json_exists(config_json, '$.models.oblique'), false) AS has_oblique,
    coalesce(any_contrast, false) OR coalesce(json_exists(config_json, '$.models.contrast'), false) AS has_contrast,
    coalesce(any_stenosis, false) OR coalesce(json_exists(config_json, '$.models.stenosis'), false) AS has_stenosis,
    coalesce(any_calcium, false) OR coalesce(json_exists(config_json, '$.models.calcium'), false) AS has_calcium,
    model_domain, code_version, config_digest, config_json
FROM events
LEFT JOIN objects USING (run_id);

-- One line per clip: its newest result. Finished runs only; the object's own facts come from the newest run that has
-- it (its status too: a run without the quality task gates nothing), the columns of each task from the newest run that was
-- asked for that task. The same clip under several URIs is
-- one line: that of the newest run, not rejected before rejected, then the smallest object_id.
CREATE VIEW latest_scores AS
WITH finished AS (
    SELECT
        run_id, has_quality, has_artery, has_oblique, has_contrast, has_stenosis, has_calcium,
        row_number() OVER (ORDER BY finished_at DESC, run_id) AS age
    FROM run_summary
    WHERE finished
),
candidates AS (
    SELECT
        scores.*, has_quality, has_artery, has_oblique, has_contrast, has_stenosis, has_calcium, age,
        coalesce(clip_id, object_id) AS clip_key
    FROM scores
    JOIN finished USING (run_id)
),
-- newest row per object first, so that an object read at last does not stay listed as once unreadable
newest AS (
    SELECT * FROM (SELECT * FROM candidates QUALIFY row_number() OVER (PARTITION BY object_id ORDER BY age) = 1)
    QUALIFY row_number() OVER (PARTITION BY clip_key ORDER BY age, status = 'rejected', object_id) = 1
),
quality AS (
    SELECT
        clip_key, run_id AS quality_run_id, quality_status, quality_reason, quality_probability, quality_threshold,
        quality_satisfactory
    FROM (
        SELECT * FROM candidates WHERE has_quality
        QUALIFY row_number() OVER (PARTITION BY object_id ORDER BY age) = 1
    )
    QUALIFY row_number() OVER (PARTITION BY clip_key ORDER BY age, status = 'rejected', object_id) = 1
),
arteries AS (
    SELECT
        clip_key, run_id AS artery_run_id, artery_status, artery_reason, artery_probability, artery_threshold,
        artery AS artery_alone, "view" AS view_alone, view_distance_deg AS distance_alone
    FROM (
        SELECT * FROM candidates WHERE has_artery
        QUALIFY row_number() OVER (PARTITION BY object_id ORDER BY age) = 1
    )
    QUALIFY row_number() OVER (PARTITION BY clip_key ORDER BY age, status = 'rejected', object_id) = 1
),
obliques AS (
    SELECT
        clip_key, run_id AS oblique_run_id, oblique_status, oblique_reason, oblique, oblique_probability, oblique_threshold,
        view_suspect
    FROM (
        SELECT * FROM candidates WHERE has_oblique
        QUALIFY row_number() OVER (PARTITION BY object_id ORDER BY age) = 1
    )
    QUALIFY row_number() OVER (PARTITION BY clip_key ORDER BY age, status = 'rejected', object_id) = 1
),
contrasts AS (
    SELECT
        clip_key, run_id AS contrast_run_id, contrast_status, contrast_reason, first_contrast, contrast_begin,
        contrast_end, last_contrast, candidate_frames, contrast_frames, contrast_threshold
    FROM (
        SELECT * FROM candidates WHERE has_contrast
        QUALIFY row_number() OVER (PARTITION BY object_id ORDER BY age) = 1
    )
    QUALIFY row_number() OVER (PARTITION BY clip_key ORDER BY age, status = 'rejected', object_id) = 1
),
stenosis AS (
    SELECT
        clip_key, run_id AS stenosis_run_id, stenosis_status, stenosis_reason, artery, "view",
        view_distance_deg AS distance, first_contrast AS first_own, contrast_begin AS begin_own,
        contrast_end AS end_own, last_contrast AS last_own, candidate_frames AS candidates_own,
        stenosis_probability, stenosis_threshold, stenosis_class, stenosis_frames
    FROM (
        SELECT * FROM candidates WHERE has_stenosis
        QUALIFY row_number() OVER (PARTITION BY object_id ORDER BY age) = 1
    )
    QUALIFY row_number() OVER (PARTITION BY clip_key ORDER BY age, status = 'rejected', object_id) = 1
),
calcium AS (
    SELECT
        clip_key, run_id AS calcium_run_id, calcium_status, calcium_reason, calcium_probability, calcium_threshold,
        calcium_roi_area_mm2, calcium_frames, calcium_regions, calcium_heart_period_s, calcium_phase_quality,
        calcium_phase_difference_frames
    FROM (
        SELECT * FROM candidates WHERE has_calcium
        QUALIFY row_number() OVER (PARTITION BY object_id ORDER BY age) = 1
    )
    QUALIFY row_number() OVER (PARTITION BY clip_key ORDER BY age, status = 'rejected', object_id) = 1
)
SELECT
    n.run_id, n.object_id, n.clip_id, n.patient_id, n.study_id, n.status, n.reason, n.detail, n.synthetic, n.plane,
    n.study_year, n.codec, n.num_frames, n.frame_time_ms, n.frame_time_source, n.sampled_frames, n.repeated_frames,
    n.size_bytes, n.etag, n.scored_at, n.model_domain, n.bundles,
    quality.* EXCLUDE (clip_key), arteries.* EXCLUDE (clip_key, artery_alone, view_alone, distance_alone),
    obliques.* EXCLUDE (clip_key),
    -- a stenosis keeps the artery and view of its own run; artery_probability and _threshold are of artery_run_id
    coalesce(stenosis.artery, artery_alone) AS artery,
    if(stenosis.artery IS NULL, view_alone, stenosis."view") AS "view",
    if(stenosis.artery IS NULL, distance_alone, stenosis.distance) AS view_distance_deg,
    contrast_run_id, contrasts.contrast_status, contrasts.contrast_reason,
    contrasts.contrast_frames, contrasts.contrast_threshold,
    -- those that the stenosis model went by, where it did
    if(candidates_own IS NULL, contrasts.first_contrast, first_own) AS first_contrast,
    if(candidates_own IS NULL, contrasts.contrast_begin, begin_own) AS contrast_begin,
    if(candidates_own IS NULL, contrasts.contrast_end, end_own) AS contrast_end,
    if(candidates_own IS NULL, contrasts.last_contrast, last_own) AS last_contrast,
    if(candidates_own IS NULL, contrasts.candidate_frames, candidates_own) AS candidate_frames,
    stenosis.* EXCLUDE (clip_key, artery, "view", distance, first_own, begin_own, end_own, last_own, candidates_own),
    calcium.* EXCLUDE (clip_key)
FROM newest AS n
LEFT JOIN quality USING (clip_key)
LEFT JOIN arteries USING (clip_key)
LEFT JOIN obliques USING (clip_key)
LEFT JOIN contrasts USING (clip_key)
LEFT JOIN stenosis USING (clip_key)
LEFT JOIN calcium USING (clip_key);

-- Every object without a score, of every run (unfinished ones too).
CREATE VIEW rejects AS
SELECT
    run_id, object_id, clip_id, patient_id, study_id, reason, detail, attempts, codec, num_frames, size_bytes, scored_at
FROM scores
WHERE status = 'rejected';

CREATE VIEW rejects_by_reason AS
SELECT
    run_id, reason, count(*) AS num_objects, count(DISTINCT study_id) AS num_studies,
    count(*) / any_value(total) AS fraction
FROM (SELECT run_id, status, reason, study_id, count(*) OVER (PARTITION BY run_id) AS total FROM scores)
WHERE status = 'rejected'
GROUP BY run_id, reason
ORDER BY run_id, num_objects DESC, reason;

-- The same clip under several URIs within a run: scored each time, shown once by latest_scores.
CREATE VIEW duplicate_clips AS
SELECT run_id, clip_id, count(*) AS num_objects, list(object_id ORDER BY object_id) AS object_ids
FROM scores
WHERE clip_id IS NOT NULL
GROUP BY run_id, clip_id
HAVING count(*) > 1;

-- How many clips the quality model excludes. The rate is of the clips that have a verdict (scored or gated); rejected
-- ones are not counted in and stand beside it. Null where no clip has a verdict.
CREATE VIEW exclusion_by_study AS
SELECT
    study_id, any_value(patient_id) AS patient_id, bool_or(synthetic) AS synthetic,
    count(*) AS num_clips,
    count(quality_satisfactory) AS num_evaluated,
    count(*) FILTER (NOT quality_satisfactory) AS num_unsatisfactory,
    count(*) FILTER (status = 'rejected') AS num_rejected,
    count(*) FILTER (NOT quality_satisfactory) / nullif(count(quality_satisfactory), 0) AS exclusion_rate
FROM latest_scores
GROUP BY study_id;

CREATE VIEW exclusion_by_patient AS
SELECT
    patient_id, bool_or(synthetic) AS synthetic,
    count(DISTINCT study_id) AS num_studies,
    count(*) AS num_clips,
    count(quality_satisfactory) AS num_evaluated,
    count(*) FILTER (NOT quality_satisfactory) AS num_unsatisfactory,
    count(*) FILTER (status = 'rejected') AS num_rejected,
    count(*) FILTER (NOT quality_satisfactory) / nullif(count(quality_satisfactory), 0) AS exclusion_rate
FROM latest_scores
GROUP BY patient_id;

-- Stenosis, one line per candidate frame.
CREATE VIEW stenosis_frames AS
SELECT
    stenosis_run_id AS run_id, object_id, clip_id, study_id, patient_id, artery, "view", f.frame AS frame,
    f.probability AS probability, f."class" AS "class", f.boxes AS boxes
FROM (SELECT *, unnest(stenosis_frames) AS f FROM latest_scores);

-- What stands out in the candidate frames, also in those called without a narrowing (frame_class): one line per box, in the
-- file's own pixels, its sides in mm at the patient too. The figures of boxes (metrics) count those from half a probability on.
CREATE VIEW stenosis_boxes AS
SELECT
    run_id, object_id, clip_id, study_id, patient_id, artery, "view", frame, frame_class, frame_probability,
    b.probability AS probability,
    b.x0 AS x0, b.y0 AS y0, b.x1 AS x1, b.y1 AS y1, (b.x1 - b.x0) * column_mm AS width_mm, (b.y1 - b.y0) * row_mm AS height_mm
FROM (
    SELECT * EXCLUDE (probability), probability AS frame_probability, "class" AS frame_class, unnest(boxes) AS b
    FROM stenosis_frames
)
LEFT JOIN pixel_sizes USING (object_id);

-- Rows with their study, also those of objects that could not be read: the study that another run found in the same object.
CREATE VIEW scores_by_study AS
SELECT scores.* REPLACE (coalesce(study_id, known_id) AS study_id)
FROM scores
LEFT JOIN (
    SELECT object_id, first(study_id ORDER BY scored_at DESC) AS known_id FROM scores WHERE study_id IS NOT NULL GROUP BY object_id
) USING (object_id);

-- Which run speaks for a study, so that no figure of a study mixes runs: of the finished ones asked for stenosis (without any:
-- of all) the one with the most clips of the study, of these the newest. So a later run over some of its clips does not
-- replace what was said of the whole. For calcium likewise.
CREATE VIEW study_runs AS
SELECT
    study_id,
    first(run_id ORDER BY has_stenosis DESC, num_clips DESC, finished_at DESC, run_id) AS run_id,
    bool_or(has_stenosis) AS has_stenosis,
    first(run_id ORDER BY num_clips DESC, finished_at DESC, run_id) FILTER (has_calcium) AS calcium_run_id
FROM (
    SELECT
        study_id, run_id, has_stenosis, has_calcium, finished_at, count(DISTINCT coalesce(clip_id, object_id)) AS num_clips
    FROM scores_by_study
    JOIN run_summary USING (run_id)
    WHERE finished AND study_id IS NOT NULL
    GROUP BY ALL
)
GROUP BY study_id;

-- The clips of each study in those runs, each clip once (under several URIs: a scored one first).
CREATE VIEW study_clips AS
SELECT
    s.*, has_stenosis, s.run_id = r.run_id AS of_run, s.run_id IS NOT DISTINCT FROM calcium_run_id AS of_calcium_run,
    stenosis_status IS NOT DISTINCT FROM 'scored' AND stenosis_probability IS NOT NULL AS stenosis_scored
FROM scores_by_study AS s
JOIN study_runs AS r ON s.study_id = r.study_id AND s.run_id IN (r.run_id, r.calcium_run_id)
QUALIFY row_number() OVER (
    PARTITION BY s.study_id, s.run_id, coalesce(clip_id, object_id)
    ORDER BY stenosis_scored DESC, calcium_status = 'scored' DESC NULLS LAST, status = 'rejected', object_id
) = 1;

-- Stenosis, one line per artery of a study that a scored clip shows: the largest score over its frames, clips and views, all
-- of one run, and the class of the clip that has it. Positive is null where a threshold is not known.
CREATE VIEW artery_scores AS
SELECT
    study_id, artery, any_value(run_id) AS run_id, any_value(patient_id) AS patient_id, bool_or(synthetic) AS synthetic,
    count(*) AS num_clips,
    max(stenosis_probability) AS stenosis_probability,
    first(stenosis_class ORDER BY stenosis_probability DESC, object_id) AS stenosis_class,
    CASE
        WHEN bool_or(stenosis_probability >= stenosis_threshold) THEN true
        WHEN count(stenosis_threshold) = count(*) THEN false
    END AS stenosis_positive,
    list(DISTINCT "view" ORDER BY "view") FILTER ("view" IS NOT NULL) AS views
FROM study_clips
WHERE of_run AND stenosis_scored AND artery IS NOT NULL
GROUP BY study_id, artery;

-- One line per study, from one run (study_runs). One positive clip makes the study positive; without one, and without a
-- scored clip of both arteries (complete), positive and probability are null: what was not looked at does not speak for the
-- study. Where no run was asked for stenosis, complete and views_missing are null too.
CREATE VIEW study_scores AS
WITH clips_of AS (
    SELECT
        study_id, any_value(run_id) AS run_id, any_value(patient_id) AS patient_id, any_value(study_year) AS study_year,
        bool_or(synthetic) AS synthetic, bool_or(has_stenosis) AS has_stenosis,
        count(*) AS num_clips,
        count(*) FILTER (status = 'gated') AS num_gated,
        count(*) FILTER (status = 'rejected') AS num_rejected,
        count(*) FILTER (stenosis_scored AND artery = 'LCA') AS num_lca_clips,
        count(*) FILTER (stenosis_scored AND artery = 'RCA') AS num_rca_clips,
        num_lca_clips > 0 AND num_rca_clips > 0 AS "both",
        max(stenosis_probability) FILTER (stenosis_scored) AS highest,
        bool_or(stenosis_probability >= stenosis_threshold) FILTER (stenosis_scored) AS any_positive,
        bool_and(coalesce(stenosis_probability < stenosis_threshold, false)) FILTER (stenosis_scored) AS all_negative
    FROM study_clips
    WHERE of_run
    GROUP BY study_id
),
missing AS (
    SELECT study_id, list(v.artery || ' ' || v."view" ORDER BY v.artery, v."view") AS views_missing
    FROM clips_of
    CROSS JOIN standard_views AS v
    LEFT JOIN artery_scores AS a USING (study_id, artery)
    WHERE NOT coalesce(list_contains(a.views, v."view"), false)
    GROUP BY study_id
),
calcium AS (
    SELECT
        study_id, any_value(run_id) AS calcium_run_id, max(calcium_probability) AS calcium_probability,
        max(calcium_roi_area_mm2) AS calcium_roi_area_mm2
    FROM study_clips
    WHERE of_calcium_run AND calcium_status = 'scored'
    GROUP BY study_id
)
SELECT
    c.* EXCLUDE (has_stenosis, "both", highest, any_positive, all_negative),
    if(has_stenosis, "both", NULL) AS complete,
    if(has_stenosis, coalesce(views_missing, []), NULL) AS views_missing,
    if("both" OR any_positive, highest, NULL) AS stenosis_probability,
    CASE WHEN any_positive THEN true WHEN "both" AND all_negative THEN false END AS stenosis_positive,
    calcium_run_id, calcium_probability, calcium_roi_area_mm2
FROM clips_of AS c
LEFT JOIN missing USING (study_id)
LEFT JOIN calcium USING (study_id);

-- One wide line per study, for a spreadsheet. Clips and their quality are the newest of each clip (latest_scores); arteries,
-- stenosis and calcium are of one run each (study_run_id: study_scores).
CREATE VIEW study_wide AS
WITH clips_of AS (
    SELECT
        study_id,
        count(*) AS num_clips,
        count(*) FILTER (status = 'scored') AS num_scored,
        count(*) FILTER (status = 'gated') AS num_gated,
        avg(quality_probability) AS mean_quality_probability,
        min(quality_probability) AS min_quality_probability,
        max(quality_probability) AS max_quality_probability,
        string_agg(DISTINCT reason, ', ' ORDER BY reason) AS reject_reasons,
        max(model_domain) AS model_domain,
        max(scored_at) AS scored_at
    FROM latest_scores
    GROUP BY study_id
),
arteries AS (
    SELECT
        study_id,
        max(stenosis_probability) FILTER (artery = 'LCA') AS lca_stenosis_probability,
        max(stenosis_class) FILTER (artery = 'LCA') AS lca_stenosis_class,
        max(stenosis_probability) FILTER (artery = 'RCA') AS rca_stenosis_probability,
        max(stenosis_class) FILTER (artery = 'RCA') AS rca_stenosis_class
    FROM artery_scores
    GROUP BY study_id
)
SELECT
    s.study_id, s.patient_id, s.synthetic, s.study_year, days.days_since_first_study, c.num_clips,
    c.num_scored, c.num_gated, e.num_evaluated, e.num_unsatisfactory, e.exclusion_rate, e.num_rejected,
    c.reject_reasons, c.mean_quality_probability, c.min_quality_probability, c.max_quality_probability,
    s.run_id AS study_run_id, a.lca_stenosis_probability, a.lca_stenosis_class, a.rca_stenosis_probability, a.rca_stenosis_class,
    s.num_lca_clips, s.num_rca_clips, s.complete, s.views_missing, s.stenosis_probability, s.stenosis_positive,
    s.calcium_probability, s.calcium_roi_area_mm2, c.model_domain, c.scored_at
FROM study_scores AS s
JOIN clips_of AS c USING (study_id)
JOIN exclusion_by_study AS e USING (study_id)
LEFT JOIN arteries AS a USING (study_id)
LEFT JOIN study_days AS days USING (study_id);

-- What needs the clips table: made where its root can be reached, else the same columns with no rows.

-- Days from a patient's first known study to each study. Dates themselves stay in clips.
CREATE VIEW study_days AS
WITH studies AS (
    SELECT study_id, min(patient_id) AS patient_id, min(try_strptime(study_date, '%Y%m%d')) AS day
    FROM clips
    WHERE study_id IS NOT NULL
    GROUP BY study_id
)
SELECT study_id, CAST(date_diff('day', min(day) OVER (PARTITION BY patient_id), day) AS INTEGER) AS days_since_first_study
FROM studies
WHERE day IS NOT NULL;

-- Size of a pixel at the patient, mm: that at the detector over the geometric magnification. Null without one of the three.
CREATE VIEW pixel_sizes AS
SELECT
    object_id,
    imager_pixel_spacing_mm[1] * distance_source_to_patient_mm / nullif(distance_source_to_detector_mm, 0) AS row_mm,
    imager_pixel_spacing_mm[2] * distance_source_to_patient_mm / nullif(distance_source_to_detector_mm, 0) AS column_mm
FROM clips
QUALIFY row_number() OVER (PARTITION BY object_id ORDER BY indexed_at DESC) = 1;

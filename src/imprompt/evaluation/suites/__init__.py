"""Benchmarks on published data, for any base and adapter and for published baselines: coco and dreambench.

    settings → data → tasks → drawing (engines: here, processes, Ray) → features → scores → report

Everything resumes: a picture that is drawn, and a part of features that is computed, is not made again.
"""

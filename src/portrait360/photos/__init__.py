"""From a folder of photos to a dataset: read → find persons → fit the body → crop → mask → accept or reject.

`reading` opens files, `detect` finds persons, `fit` explains what was found by camera and body pose, `crop` and `matte`
cut the image and its mask, `gates` accept or reject, `worker` does all of that for one photo and `job` for a folder.
"""

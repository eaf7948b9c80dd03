"""The search of a gallery in the browser: a server of this machine, and one page.

    service.py    what is asked: the pictures, the nearest of them, queries that were dropped in
    upload.py     bytes of anybody -> a picture, or a refusal in words
    guard.py      who may ask, and what the browser may do with an answer
    app.py        the addresses
    server.py     the port
    page/         HTML, JavaScript and CSS, as they are

Not Gradio: its page loads fonts and scripts of others, so it is broken without the internet and tells others
that it is opened.  It keeps uploads on disk, and hides the path of a request, on which the checks here stand.

Unusual here:
- An upload is the body of a request, not a form: no parser of forms, and no temporary file.
- All of a result's state is in the address (`#row=12&part=torso`): a step back is the browser's.
"""
